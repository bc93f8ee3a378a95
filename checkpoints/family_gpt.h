/* What the families of the GPT-2 line share: LayerNorm, an ungated MLP, fused q|k|v in one of two orders, keys with two spellings
 * (n_embd and hidden_size) and a default for each. Internal to checkpoints/. */
#ifndef GQAKIT_CHECKPOINTS_FAMILY_GPT_H
#define GQAKIT_CHECKPOINTS_FAMILY_GPT_H

#include "family_common.h"

/* ---- config.json -> arch ------------------------------------------------------------------------------------------ */

/* Two spellings of one key: `key` is the family's, `alias` one that transformers reads too. A list ends with NULL. */
struct gpt_alias { const char *key, *alias; };
extern const struct gpt_alias GPT_ALIASES[]; /* n_embd, n_layer, n_head, n_positions */
#define GPT_KEYS_DIMS \
    "n_embd", "hidden_size", "n_layer", "num_hidden_layers", "n_head", "num_attention_heads", "n_positions", "max_position_embeddings", "n_inner"
#define GPT_DIMS .C = "n_embd", .L = "n_layer", .H = "n_head", .P = "n_positions", .F = "n_inner", .F_times = 4

/* family_dims_read with aliases (NULL: none); LayerNorm with eps under `eps_key` (NULL: none; 1e-5 when absent); bos, eos; tied. The
 * family sets the rest: positions, biases, MLP. */
enum code gpt_read(struct arch *a, const json_t *config, const char *where, const struct family_dims *dims, const struct gpt_alias *aliases,
                   const char *eps_key, int bos, int eos) MUST_USE;
/* Keys understood only at one value, given as JSON text; absent and null pass too. ERR_UNSUPPORTED names key and value. */
struct gpt_only { const char *key, *value; };
enum code gpt_only_check(const json_t *config, const char *where, const struct gpt_only *list, size_t n) MUST_USE;

/* Of heads and dropout, and so of no meaning here. */
#define GPT_KEYS_HARMLESS \
    "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout", "embed_dropout", "resid_dropout", "n_ctx", \
    "output_past", "n_special", "predict_special_tokens", "attention_dropout_prob", "hidden_dropout_prob"

/* ---- tensors ------------------------------------------------------------------------------------------------------ */

extern const char *const GPT_NAMES[]; /* of GPT-2 and GPTBigCode, [T_SLOTS]; layers under "transformer.h.%lld." */

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
/* family_fresh_begin, and the activation and eps under their keys (NULL: none). */
enum code gpt_fresh_begin(const struct arch *a, json_t *config, const char *class_name, const char *model_type, const struct family_dims *dims,
                          const char *act_key, const char *eps_key) MUST_USE;

#endif
