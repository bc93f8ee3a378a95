/* gqa-convert --inspect: what a checkpoint is, which group counts it can have, what each would save while decoding. */
#include "convert.h"

#include <stdio.h>

static json_t *tensors_json(struct checkpoint *ck)
{
    json_t *list = json_array();
    for (int i = 0; i < ckpt_count(ck); i++) {
        const struct ckpt_tensor *t = ckpt_at(ck, i);
        json_t *shape = json_array();
        for (int d = 0; d < t->nd; d++)
            json_array_append_new(shape, json_integer(t->n[d]));
        json_array_append_new(list, json_pack("{s:s, s:s, s:o, s:s, s:I}", "name", t->name, "source", t->source ? t->source : t->name, "shape",
                                              shape, "dtype", dtype_name(t->dtype), "bytes", (json_int_t)t->bytes));
    }
    return list;
}

/* Names of results, one of each kind. */
#define DIRECTORY "a directory"
#define GGUF "a.gguf"

/* Where a result with G heads would live; a refusal is an answer too. */
static enum code home_of(const struct arch *from, int64_t G, const char *path, struct ckpt_choice *choice)
{
    struct arch a;
    TRY(arch_copy(&a, from));
    enum code c = plan_groups(&a, G);
    if (c == OK)
        c = ckpt_choose(&a, path, HOME_AUTO, NULL, choice);
    arch_free(&a);
    return c;
}

static json_t *homes_json(const struct arch *a, const int64_t *legal, int n, const char *path)
{
    json_t *homes = json_object();
    for (int i = 0; i < n; i++) {
        struct ckpt_choice choice;
        char key[24];
        snprintf(key, sizeof key, "%lld", (long long)legal[i]);
        json_object_set_new(homes, key, home_of(a, legal[i], path, &choice) == OK ? report_home(&choice) : json_pack("{s:n, s:s}", "home", "sentence", fail_text()));
    }
    return homes;
}

static void inspect_json(struct checkpoint *ck, const int64_t *legal, int n)
{
    const struct arch *a = ckpt_arch(ck);
    json_t *j = json_result("inspect", "cpu"), *groups = json_array(), *kv = json_object();
    for (int i = 0; i < n; i++) {
        char key[24];
        snprintf(key, sizeof key, "%lld", (long long)legal[i]);
        json_array_append_new(groups, json_integer(legal[i]));
        json_object_set_new(kv, key, json_integer(arch_kv_bytes_per_token(a, legal[i], a->dtype)));
    }
    json_object_set_new(j, "path", json_string(ckpt_path(ck)));
    json_object_set_new(j, "form", json_string(ckpt_form_name(ck)));
    json_object_set_new(j, "parameters", json_integer(arch_parameters(a)));
    json_object_set_new(j, "arch", arch_to_json(a));
    json_object_set_new(j, "tensors", tensors_json(ck));
    json_object_set_new(j, "legal_kv_heads", groups);
    json_object_set_new(j, "kv_bytes_per_token", kv);
    json_object_set_new(j, "homes", homes_json(a, legal, n, DIRECTORY));
    json_object_set_new(j, "gguf", homes_json(a, legal, n, GGUF));
    json_print(j, 2);
    json_decref(j);
}

/* One line; `bytes` NULL: a further home of the same heads. */
static void home_print(const struct arch *a, int64_t G, const char *path, const char *bytes)
{
    struct ckpt_choice c;
    enum code code = home_of(a, G, path, &c);
    if (bytes)
        printf("%15lld  %-20s ", (long long)G, bytes);
    else
        printf("%15s  %-20s ", "", "");
    printf("%s: %s\n", code == OK ? ckpt_home_name(c.home) : bytes ? "none" : "no gguf", code == OK ? c.sentence : fail_text());
}

/* One number, or one for each layer. */
static void print_groups(const struct arch_stack *s)
{
    int same = 1;
    for (int64_t l = 1; l < s->L; l++)
        same &= s->block[l].G == s->block[0].G;
    for (int64_t l = 0; l < (same ? 1 : s->L); l++)
        printf("%s%lld", l ? "," : "", (long long)s->block[l].G);
}

static void inspect_table(struct checkpoint *ck, const int64_t *legal, int n)
{
    const struct arch *a = ckpt_arch(ck);
    const struct arch_stack *s = &a->stack[STACK_DEC];
    const struct arch_block *b = &s->block[0];
    char count[16], bytes[16];
    format_count(count, (double)arch_parameters(a));
    printf("%s: %s, family %s, %s parameters, %s\n", ckpt_path(ck), ckpt_form_name(ck), a->family[0] ? a->family : "llama", count,
           dtype_name(a->dtype));
    printf("layers %lld, width %lld, query heads %lld, key/value heads ", (long long)s->L, (long long)a->C, (long long)b->H);
    print_groups(s);
    printf(", head width %lld, MLP width %lld, vocabulary %lld, positions %lld\n", (long long)b->D, (long long)b->F, (long long)a->V, (long long)a->max_positions);
    describe(a);
    printf("\n");
    printf("%-40s %-52s %-6s %s\n", "tensor", "in the file", "type", "shape");
    for (int i = 0; i < ckpt_count(ck); i++) {
        const struct ckpt_tensor *t = ckpt_at(ck, i);
        printf("%-40s %-52s %-6s %lld", t->name, t->source ? t->source : "", dtype_name(t->dtype), (long long)t->n[0]);
        printf(t->nd == 2 ? " x %lld\n" : "\n", (long long)t->n[1]);
    }
    printf("\n%s  %-20s %s\n", "key/value heads", "K/V cache per token", "home");
    for (int i = 0; i < n; i++) {
        format_bytes(bytes, (double)arch_kv_bytes_per_token(a, legal[i], a->dtype));
        home_print(a, legal[i], DIRECTORY, bytes);
        home_print(a, legal[i], GGUF, NULL);
    }
}

enum code inspect_run(const struct options *o)
{
    struct ckpt_options open_options = { o->header_mb << 20 };
    struct checkpoint *ck = NULL;
    TRY(ckpt_open(&ck, o->source, &open_options));
    int64_t legal[64];
    int n = arch_legal_groups(ckpt_arch(ck), legal, 64);
    if (o->json)
        inspect_json(ck, legal, n);
    else
        inspect_table(ck, legal, n);
    ckpt_close(ck);
    return OK;
}
