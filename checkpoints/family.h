/* A model family: how its config.json becomes a struct arch and where its tensors lie in the file. A new family is one new
 * file family_NAME.c and one line in FAMILIES below; nothing outside checkpoints/ knows that families exist. */
#ifndef GQAKIT_CHECKPOINTS_FAMILY_H
#define GQAKIT_CHECKPOINTS_FAMILY_H

#include "arch.h"

#define FAMILIES(X)                                                                                                              \
    X(family_llama) X(family_qwen2) X(family_qwen3) X(family_olmo) X(family_olmo2) X(family_gemma) X(family_phi) X(family_phi3)   \
    X(family_stablelm) X(family_starcoder2) X(family_gpt2) X(family_gpt_bigcode) X(family_gpt_neo) X(family_gpt_neox)           \
    X(family_gptj) X(family_opt) X(family_bloom) X(family_mpt) X(family_falcon) X(family_gqakit)

/* Where a canonical tensor lies: row r is row first + (r / inner) * stride + r % inner of the file's tensor `name`, whose
 * shape is n. An unfused tensor has first 0, inner = stride = its rows. Fused q|k|v rows: first picks the part; [H, 3, h]
 * interleaving: inner h, stride 3h. Reading gathers, writing scatters by the same numbers.
 * transposed: the file holds [in, out] (GPT-2's Conv1D): n is the file's shape, and "row" above means its column.
 * rotary > 0: in the file the first `rotary` rows of every `head` rows are the pairs (0, r/2), (1, r/2 + 1) ... side by side
 * (GPT-J): canonical row i < r/2 of a head is the file's row 2i, row i >= r/2 is 2(i - r/2) + 1; applied before first, inner, stride.
 * pieces > 1: the rows are split evenly over that many file tensors of shape n; `name` holds one "%d", the number of the piece, and
 * all of the above happens within each piece. */
struct family_place {
    char name[128];
    int nd;
    int64_t n[2]; /* n[1] = 1 for vectors */
    int64_t first, inner, stride;
    int transposed;
    int64_t head, rotary;
    int pieces;
};
/* The plain place of a tensor: its own shape under `name`. */
void family_place_plain(struct family_place *p, const struct tensor_spec *spec, const char *name);
/* The name of one piece, or the name itself without pieces. */
void family_place_name(const struct family_place *p, int piece, char out[160]);

/* A file that goes with every directory of a family (Python of ours). */
struct family_file { const char *name, *bytes; size_t n; };

struct family {
    const char *const *model_types; /* NULL ended; the values of "model_type" it reads */
    const char *const *keys;        /* NULL ended; config keys that it reads, besides the common ones of config_keys.c */
    const char *groups_key;         /* "num_key_value_heads"; inserted after heads_key when the source lacks it */
    const char *heads_key;
    const char *prefix; /* NULL, or what file names may also lack, as place() says them: "transformer." of a bare GPT2Model */
    /* Fills everything of a (after memset 0; calls arch_init) but source_config and dtype; V with what an absent vocab_size means (0:
     * it is required). arch_check runs after it. */
    enum code (*read)(struct arch *a, const json_t *config, const char *where);
    void (*place)(const struct arch *a, const struct tensor_spec *spec, struct family_place *place);
    int (*ignores)(const struct arch *a, const char *name); /* 1: a buffer or duplicate that carries nothing */
    /* config.json of an arch that came from elsewhere, without torch_dtype. ERR_UNSUPPORTED when it cannot say it. */
    enum code (*fresh)(const struct arch *a, json_t *config);
    /* ERR_UNSUPPORTED, with the reason, when the family's class cannot hold these numbers of K/V heads. NULL: it holds any number
     * that is the same in all layers. */
    enum code (*holds)(const struct arch *a);
    /* Makes the source's config.json say a's number of K/V heads. NULL: groups_key is set. */
    enum code (*set_groups)(const struct arch *a, char **text);
    int per_layer; /* 1: its config.json says the K/V heads of each layer */
    int (*file)(int i, struct family_file *file); /* the i-th; 0 beyond the last. NULL: none */
};

#define FAMILY_DECLARE(name) extern const struct family name;
FAMILIES(FAMILY_DECLARE)

const struct family *family_of(const char *model_type); /* NULL when unknown */
const char *family_list(void);                          /* "llama, mistral, qwen2 ..." */

/* config_keys.c: ERR_UNSUPPORTED names the first key that is neither harmless, nor common, nor the family's. */
enum code config_keys_check(const json_t *config, const struct family *family, const char *where) MUST_USE;
/* config_rope.c: theta and scaling from rope_parameters (transformers 5) or rope_scaling and rope_theta. The blocks, rope.dims and
 * max_positions are set before; rope.original_max_positions too where the class has a default for the outer key of that name (0: none). */
enum code config_rope_read(struct arch *a, const json_t *config, const char *where) MUST_USE;
/* partial_rotary_factor among those settings; absent leaves *partial. */
enum code config_rope_partial(const json_t *config, const char *where, double *partial) MUST_USE;
void config_rope_fresh(const struct arch_rope *r, json_t *config);
/* config_text.c: sets a top-level member of the JSON object in *text (valid, malloc'ed) to `value` (JSON text) without touching
 * any other byte; a new member goes after `after` with its indentation. */
enum code config_text_set(char **text, const char *key, const char *value, const char *after) MUST_USE;
/* Indented text with the fewest digits that read back to the same numbers; malloc'ed, NULL when out of memory. */
char *config_dump(const json_t *config);
/* "bfloat16" and such; "" for a type no config names. */
const char *config_dtype_name(enum dtype t);
/* What torch_dtype or dtype says; DT_F32 when silent. */
enum code config_dtype_read(const json_t *config, const char *where, enum dtype *dtype) MUST_USE;
/* What every new config.json says besides what the family's `fresh` does: vocab_size, token ids, torch_dtype (DT_NONE: the arch's). */
void config_common_fresh(const struct arch *a, enum dtype dtype, json_t *config);
/* hf_config.c; see checkpoint.h. */
enum code arch_from_config_json(struct arch *a, const char *bytes, size_t n, const char *where) MUST_USE;

/* family_fresh.c: 1 when two archs agree in every member that a config.json can say, else `what` names the first that differs, with
 * the value wanted. */
int family_arch_same(const struct arch *want, const struct arch *said, char *what, size_t n);

#endif
