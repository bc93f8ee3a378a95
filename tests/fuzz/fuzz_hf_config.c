/* config.json: what is read can be written, and reads back to as many parameters; every tensor has a place in the files whose rows
 * lie inside it. */
#include <stdlib.h>
#include <string.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/rows.h"

static void places_check(const struct arch *a)
{
    struct tensor_spec *specs;
    int n;
    if (a->stack[STACK_DEC].L > 8 || arch_tensors(a, &specs, &n) != OK)
        return;
    for (int i = 0; i < n; i++) {
        struct family_place p;
        int64_t run;
        family_of(a->family)->place(a, &specs[i], &p);
        struct row_map m = row_map_make(&p, specs[i].n[0], specs[i].n[1]); /* checks itself */
        int64_t at = row_map_at(&m, m.piece - 1, 1, &run);
        CHECK(run == 1 && at >= 0 && at < (p.transposed ? p.n[1] : p.n[0]));
    }
    free(specs);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct arch a, b;
    char *text = NULL;
    if (arch_from_config_json(&a, (const char *)data, n, "fuzz") != OK)
        return 0;
    places_check(&a);
    int64_t groups[4];
    CHECK(arch_legal_groups(&a, groups, 4) >= 1);
    for (int64_t l = 0; l < a.stack[STACK_DEC].L; l++)
        a.stack[STACK_DEC].block[l].G = 1;
    a.tied = !a.tied;
    enum code c = arch_to_config_json(&a, DT_BF16, &text);
    if (c == OK) {
        CHECK(arch_from_config_json(&b, text, strlen(text), "again") == OK);
        CHECK(arch_parameters(&a) == arch_parameters(&b) && b.stack[STACK_DEC].block[0].G == 1 && b.dtype == DT_BF16);
        arch_free(&b);
    }
    free(text);
    free(a.source_config);
    a.source_config = NULL;
    if (arch_to_config_json(&a, DT_NONE, &text) == OK) {
        CHECK(arch_from_config_json(&b, text, strlen(text), "fresh") == OK);
        CHECK(arch_parameters(&a) == arch_parameters(&b) && a.rope.dims == b.rope.dims);
        arch_free(&b);
        free(text);
    }
    arch_free(&a);
    return 0;
}
