/* What the families of the GPT-2 line share: LayerNorm, an ungated MLP, fused q|k|v in one of two orders, keys with two spellings
 * (n_embd and hidden_size) and a default for each. Internal to checkpoints/. */
#ifndef GQAKIT_CHECKPOINTS_FAMILY_GPT_H
#define GQAKIT_CHECKPOINTS_FAMILY_GPT_H

#include "family_common.h"

/* ---- config.json -> arch ------------------------------------------------------------------------------------------ */

/* A dimension: the family's key, another spelling that transformers reads too (or NULL), and the class's default. */
struct gpt_dim { const char *key, *alias; int64_t absent; };
struct gpt_dims {
    struct gpt_dim C, L, H, P;
    const char *F; /* NULL: no key; absent or null: F_absent, or F_times * C */
    int64_t F_times, F_absent;
};

/* arch_init, name, dimensions (G = H, D = C / H), attn_scale D^-0.5, LayerNorm with eps under `eps_key` (NULL: none; 1e-5 when absent),
 * bos and eos; tied. The family sets the rest: positions, biases, MLP. */
enum code gpt_read(struct arch *a, const json_t *config, const char *where, const struct gpt_dims *dims, const char *eps_key, int bos, int eos) MUST_USE;
enum code gpt_dim_read(const json_t *config, const char *where, const struct gpt_dim *dim, int64_t *value) MUST_USE;
/* Keys understood only at one value, given as JSON text; absent and null pass too. ERR_UNSUPPORTED names key and value. */
struct gpt_only { const char *key, *value; };
enum code gpt_only_check(const json_t *config, const char *where, const struct gpt_only *list, size_t n) MUST_USE;

/* Of heads and dropout, and so of no meaning here. */
#define GPT_KEYS_HARMLESS \
    "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout", "embed_dropout", "resid_dropout", "n_ctx"

/* ---- tensors ------------------------------------------------------------------------------------------------------ */

/* q|k|v of one file tensor, place->name set: by part (all q, all k, all v), or by group: [G, R + 2, D], R queries, k, v. With
 * G = H the latter is [H, 3, D], with G = 1 it is q | k | v. Other slots are left as they are. */
enum gpt_order { GPT_BY_PART, GPT_BY_GROUP };
void gpt_place_qkv(struct family_place *p, const struct arch *a, const struct tensor_spec *t, enum gpt_order order);
/* [out, in] -> Conv1D's [in, out]. */
void gpt_place_transposed(struct family_place *p);
/* Mask buffers, rotary tables, and a tied head under either name. */
int gpt_ignores(const struct arch *a, const char *name);

/* ---- arch -> config.json ------------------------------------------------------------------------------------------ */

/* A class without a number of key/value heads. */
enum code gpt_holds_mha(const struct arch *a);
/* Nothing is retargeted to this family; its config.json is always edited from a source's. */
enum code gpt_fresh_refused(const struct arch *a, json_t *config);

#endif
