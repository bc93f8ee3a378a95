/* arch.json of a native file: what is read writes the same JSON again, copies, and reads back. */
#include <stdlib.h>

#include "checkpoints/arch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    json_t *j;
    struct arch a, b;
    if (json_parse_object((const char *)data, n, "fuzz", &j) != OK)
        return 0;
    if (arch_from_json(&a, j, "fuzz") == OK) {
        json_t *said = arch_to_json(&a), *again;
        CHECK(arch_copy(&b, &a) == OK);
        arch_free(&a);
        again = arch_to_json(&b);
        CHECK(json_equal(said, again));
        arch_free(&b);
        CHECK(arch_from_json(&a, said, "again") == OK);
        CHECK(arch_parameters(&a) >= 0);
        arch_free(&a);
        json_decref(said);
        json_decref(again);
    }
    json_decref(j);
    return 0;
}
