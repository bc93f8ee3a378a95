/* What repeats between families: dimensions under each family's own key names, activation names, windows by layer, tensor names
 * by table, and the same back into a new config.json. A family file holds only what is its own. */
#ifndef GQAKIT_CHECKPOINTS_FAMILY_COMMON_H
#define GQAKIT_CHECKPOINTS_FAMILY_COMMON_H

#include "family.h"

/* ---- config.json -> arch ------------------------------------------------------------------------------------------ */

/* The config's keys for the dimensions (NULL: the family has no such key), and what the class takes when a key is absent (0: it is
 * required, unless said otherwise). */
struct family_dims {
    const char *C, *L, *H, *F, *P; /* P: max_positions */
    const char *G, *D;
    int64_t V_absent, C_absent, L_absent, H_absent, F_absent, P_absent;
    int64_t F_times;  /* F = F_times * C when absent or null */
    int64_t G_absent; /* 0: as many as query heads, which null always means */
    int64_t D_absent; /* 0: C / H */
};
#define FAMILY_DIMS_USUAL                                                                                                        \
    .C = "hidden_size", .L = "num_hidden_layers", .H = "num_attention_heads", .F = "intermediate_size", .P = "max_position_embeddings", \
    .G = "num_key_value_heads", .D = "head_dim"
#define FAMILY_KEYS_DIMS \
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings", "num_key_value_heads", "head_dim"
#define FAMILY_KEYS_SWITCHED_WINDOWS "use_sliding_window", "sliding_window", "max_window_layers", "layer_types"
#define FAMILY_KEYS_ROPE "rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings"

enum { FAMILY_BIAS_ATTENTION = BIAS_Q | BIAS_K | BIAS_V | BIAS_O, FAMILY_BIAS_MLP = BIAS_MLP_IN | BIAS_MLP_OUT };

/* arch_init, the family's name, every dimension, attn_scale D^-0.5 and rope.dims D (whatever pos will be). */
enum code family_dims_read(struct arch *a, const json_t *config, const char *where, const struct family_dims *dims) MUST_USE;
/* The activation under `key`: the gated kind (silu(gate) * up) or the ungated. */
enum code family_act_read(struct arch *a, const json_t *config, const char *where, const char *key, const char *fallback, int gated) MUST_USE;
const char *family_act_name(enum mlp_kind kind); /* "silu", "gelu_pytorch_tanh", "gelu", "relu" */
/* `window` in layers `first` and up, unless layer_types (transformers 5) says which. 0: no window. */
enum code family_windows_read(struct arch *a, const json_t *config, const char *where, int64_t window, int64_t first) MUST_USE;
/* The same where use_sliding_window turns it on, sliding_window (4096) says how wide, and max_window_layers (28) where it begins. */
enum code family_windows_switched_read(struct arch *a, const json_t *config, const char *where) MUST_USE;
/* clip_qkv: positive, or null for none. */
enum code family_clip_read(struct arch *a, const json_t *config, const char *where) MUST_USE;
/* A string key that has one meaning here: absent, null and `only` pass, all else is ERR_UNSUPPORTED. */
enum code family_word_only(const json_t *config, const char *where, const char *key, const char *only) MUST_USE;
/* rope.dims = (int)(D * partial_rotary_factor), which stands in the rotary settings, or outside, or is `fallback`; POS_ROPE; theta
 * and scaling. */
enum code family_rope_read(struct arch *a, const json_t *config, const char *where, double fallback) MUST_USE;

/* ---- tensors ------------------------------------------------------------------------------------------------------ */

/* The plain place under names[slot], behind `layers` with its one "%lld" for tensors of a layer ("model.layers.%lld."). */
void family_place_named(struct family_place *p, const struct tensor_spec *spec, const char *const names[T_SLOTS], const char *layers);
/* The names of llama and its like, [T_SLOTS], and their place. */
extern const char *const FAMILY_NAMES_LLAMA[];
#define FAMILY_LAYERS_LLAMA "model.layers.%lld."
void family_place_llama(const struct arch *a, const struct tensor_spec *spec, struct family_place *p);
int family_name_ends(const char *name, const char *suffix);
/* Rotary tables, and lm_head.weight where it is tied. */
int family_ignores_usual(const struct arch *a, const char *name);

/* ---- arch -> config.json ------------------------------------------------------------------------------------------ */

/* architectures, model_type, dimensions (of layer 0), max positions, tie_word_embeddings, initializer_range. */
void family_fresh_begin(const struct arch *a, json_t *config, const char *class_name, const char *model_type, const struct family_dims *dims);
/* theta, scaling and, unless `fallback` says it, a partial_rotary_factor that reads back to the same dims. A family that has no such
 * key passes 1. */
void family_rope_fresh(const struct arch *a, json_t *config, double fallback);
/* sliding_window, null without any, and layer_types where some layers have it and some not. Returns 1 with windows. */
int family_windows_fresh(const struct arch *a, json_t *config);
void family_windows_switched_fresh(const struct arch *a, json_t *config);
/* The end of every `fresh`: reads the config and compares with the arch, member for member. ERR_UNSUPPORTED names the first that
 * the config does not say: what a family can hold is exactly what it reads back. */
enum code family_fresh_end(const struct arch *a, const json_t *config) MUST_USE;

#endif
