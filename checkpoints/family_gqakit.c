/* Our own form of a Hugging Face directory, for results that no published class can hold: config.json carries the whole architecture
 * under "arch" (arch_json.c), beside the usual keys that tools look for, and two Python files that are written with it let
 * transformers load it (trust_remote_code=True). Tensors have their canonical names and layout, so `place` has nothing to say, and
 * each layer may have its own number of K/V heads. */
#include <stdlib.h>
#include <string.h>

#include "family.h"

static const char *const TYPES[] = {"gqakit", NULL};
static const char *const KEYS[] = {"arch", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                   "num_key_value_heads", "head_dim", "max_position_embeddings", NULL};

/* checkpoints/custom/: the bytes lie in the program (Makefile: this object depends on them). */
#define EMBED(symbol, path)                                                                                       \
    __asm__(".pushsection .rodata\n.balign 16\n" #symbol "_begin:\n.incbin \"" path "\"\n" #symbol "_end:\n.byte 0\n.popsection\n"); \
    extern const char symbol##_begin[] __attribute__((visibility("hidden")));                                      \
    extern const char symbol##_end[] __attribute__((visibility("hidden")))
EMBED(gqakit_configuration, "checkpoints/custom/configuration_gqakit.py");
EMBED(gqakit_modeling, "checkpoints/custom/modeling_gqakit.py");

static int gqakit_file(int i, struct family_file *f)
{
    static const char *const names[] = {"configuration_gqakit.py", "modeling_gqakit.py"};
    if (i > 1)
        return 0;
    const char *begin = i ? gqakit_modeling_begin : gqakit_configuration_begin, *end = i ? gqakit_modeling_end : gqakit_configuration_end;
    *f = (struct family_file){names[i], begin, (size_t)(end - begin)};
    return 1;
}

static enum code gqakit_read(struct arch *a, const json_t *config, const char *where)
{
    const json_t *arch = json_object_get(config, "arch");
    if (!json_is_object(arch))
        return fail(ERR_INPUT, "%s: \"arch\" is missing or no object", where);
    TRY(arch_from_json(a, arch, where));
    free(a->source_config);
    a->source_config = NULL;
    memcpy(a->family, "gqakit", sizeof "gqakit");
    return OK;
}

static void gqakit_place(const struct arch *a, const struct tensor_spec *t, struct family_place *p)
{
    (void)a;
    family_place_plain(p, t, t->name);
}

static int gqakit_ignores(const struct arch *a, const char *name)
{
    (void)a;
    (void)name;
    return 0;
}

static enum code gqakit_holds(const struct arch *a)
{
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++) {
        const struct arch_block *b = &a->stack[STACK_DEC].block[l];
        if (b->dilation || b->blocksparse || b->global_tokens || b->cross)
            return fail(ERR_UNSUPPORTED, "our modeling file has no sparse and no cross attention (layer %lld)", (long long)l);
    }
    return OK;
}

/* The arch as it stands in config.json: without what the other keys say better. */
static json_t *arch_value(const struct arch *a)
{
    json_t *arch = arch_to_json(a);
    json_object_set_new(arch, "family", json_string("gqakit"));
    json_object_del(arch, "source_config");
    return arch;
}

static enum code gqakit_fresh(const struct arch *a, json_t *config)
{
    const struct arch_stack *s = &a->stack[STACK_DEC];
    const struct arch_block *b = &s->block[0];
    TRY(gqakit_holds(a));
    json_object_set_new(config, "architectures", json_pack("[s]", "GqakitForCausalLM"));
    json_object_set_new(config, "model_type", json_string("gqakit"));
    json_object_set_new(config, "auto_map", json_pack("{s:s, s:s}", "AutoConfig", "configuration_gqakit.GqakitConfig", "AutoModelForCausalLM",
                                                      "modeling_gqakit.GqakitForCausalLM"));
    const struct { const char *key; int64_t value; } numbers[] = {
        {"hidden_size", a->C}, {"intermediate_size", b->F}, {"num_hidden_layers", s->L}, {"num_attention_heads", b->H},
        {"num_key_value_heads", b->G}, {"head_dim", b->D}, {"max_position_embeddings", a->max_positions}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        json_object_set_new(config, numbers[i].key, json_integer(numbers[i].value));
    json_object_set_new(config, "tie_word_embeddings", json_boolean(a->tied));
    json_object_set_new(config, "arch", arch_value(a));
    return OK;
}

static enum code gqakit_set_groups(const struct arch *a, char **text)
{
    char value[32];
    json_t *arch = arch_value(a);
    char *dump = config_dump(arch);
    json_decref(arch);
    snprintf(value, sizeof value, "%lld", (long long)a->stack[STACK_DEC].block[0].G);
    enum code c = dump ? config_text_set(text, "arch", dump, "") : fail(ERR_MEMORY, "config.json: out of memory");
    free(dump);
    return c == OK ? config_text_set(text, "num_key_value_heads", value, "num_attention_heads") : c;
}

const struct family family_gqakit = {
    .model_types = TYPES,
    .keys = KEYS,
    .groups_key = "num_key_value_heads",
    .heads_key = "num_attention_heads",
    .read = gqakit_read,
    .place = gqakit_place,
    .ignores = gqakit_ignores,
    .fresh = gqakit_fresh,
    .holds = gqakit_holds,
    .set_groups = gqakit_set_groups,
    .per_layer = 1,
    .file = gqakit_file,
};
