/* GGUF, the file llama.cpp runs: which of its architectures computes what a model computes, and under which names and in which
 * form it wants the tensors. Written only. Sources: ggml's docs/gguf.md; llama.cpp, src/models and src/llama-model.cpp (0.3.36 of
 * llama-cpp-python). Internal to checkpoints/, but for gguf_choose. */
#ifndef GQAKIT_CHECKPOINTS_GGUF_H
#define GQAKIT_CHECKPOINTS_GGUF_H

#include "checkpoint.h"
#include "rewrite.h"

/* 1 for *.gguf, in capitals too. form_gguf.c */
int gguf_claims(const char *path);
/* How a model of this arch becomes a .gguf: fills choice (home HOME_GGUF, the family unchanged). ERR_UNSUPPORTED with the reason when
 * llama.cpp has no architecture that computes it. */
enum code gguf_choose(const struct arch *result, struct ckpt_choice *choice) MUST_USE;

/* ---- architectures (gguf_arch.c) ------------------------------------------------------------------------------------ */

/* What llama.cpp's code for one architecture computes and demands, as sets of our enums (bit 1 << value). */
enum gguf_trait {
    GGUF_PAIRS = 1,         /* rotates the pairs (2i, 2i+1): rows of q and k are reordered ("NORM" there, "NEOX" is rotate-half) */
    GGUF_QKV = 2,           /* wants attn_qkv, rows q | k | v */
    GGUF_GATE_UP = 4,       /* wants gate | up as one ffn_up */
    GGUF_HEAD = 8,          /* wants an output matrix of its own */
    GGUF_TIED = 16,         /* has none: uses the embedding */
    GGUF_EMBED_NORM = 32,   /* has a norm behind the embedding */
    GGUF_WIDE = 64,         /* H * D need not be C */
    GGUF_PARTIAL = 128,     /* may rotate a part of each head */
    GGUF_FREQS = 256,       /* takes a divisor for every rotary frequency (llama3) */
    GGUF_LONGROPE = 512,    /* takes two sets of them */
    GGUF_LAYERS = 1024,     /* K/V heads may differ between layers */
    GGUF_CLIP = 2048,       /* clips q, k, v */
    GGUF_WINDOWS = 4096,    /* has sliding windows */
    GGUF_EMBED_SCALE = 8192, /* multiplies the embedding by sqrt(C) */
    GGUF_ALIBI_MAX = 16384, /* reads the largest ALiBi slope's exponent; others have 8 */
    GGUF_PARALLEL_KEY = 32768 /* reads use_parallel_residual */
};

struct gguf_row {
    const char *name;        /* general.architecture */
    const char *families[6]; /* the model_types it was written for */
    unsigned norms, places, residuals, positions, mlps, qk_norms;
    unsigned need, may; /* biases that must, that may be there: enum bias_bit */
    unsigned traits;    /* enum gguf_trait */
};

enum { GGUF_APPROX_GELU = 1, GGUF_APPROX_WINDOW = 2, GGUF_APPROX_DYNAMIC = 4, GGUF_APPROX_BETAS = 8, GGUF_APPROX_LONGROPE = 16,
       GGUF_APPROX_EMBED = 32 };

/* The architecture for a model as it is (nothing left to rewrite). ERR_UNSUPPORTED with the reason. */
enum code gguf_row_of(const struct arch *a, const struct gguf_row **row) MUST_USE;
/* 1 if K/V heads differ between layers. */
int gguf_layers_differ(const struct arch *a);

/* ---- tensors (gguf_names.c) ----------------------------------------------------------------------------------------- */

#define GGUF_NAME_MAX 64 /* with the NUL, ggml's limit */

/* Where a canonical tensor goes: into a tensor of the file of shape n (n[1] = 1 and nd 1: a vector). Row r of it is row first + r
 * there; with rotary > 0, within every `rotary` rows canonical row i < rotary/2 goes to 2i and row i >= rotary/2 to
 * 2(i - rotary/2) + 1. */
struct gguf_place {
    char name[GGUF_NAME_MAX];
    int nd;
    int64_t n[2];
    int64_t first, rotary;
    int f32;    /* stored as f32 whatever the matrices are: vectors, positions, norms */
    double add; /* 1 for Gemma's norms, which llama.cpp multiplies by w alone */
};
void gguf_place(const struct gguf_row *row, const struct arch *a, const struct tensor_spec *spec, struct gguf_place *place);

/* ---- metadata (gguf_meta.c) ----------------------------------------------------------------------------------------- */

struct gguf_buffer;
/* general.* and the architecture's keys. `type`: of the matrices. */
void gguf_meta(struct gguf_buffer *b, const struct gguf_row *row, const struct arch *a, enum dtype type);
/* Tensors that no checkpoint has: divisors of the rotary frequencies. At most two, [rotary dims / 2] each; free(values). */
struct gguf_extra { const char *name; float *values; int64_t n; };
enum code gguf_extras(const struct arch *a, struct gguf_extra extras[2], int *n, const char *where) MUST_USE;

/* ---- tokenizer (gguf_tokenizer.c) ----------------------------------------------------------------------------------- */

/* tokenizer.* from the companions; a model without a tokenizer that llama.cpp has is written without, after a warning.
 * ERR_INPUT: a tokenizer.json that is none. `name`: of the model, written here because llama.cpp demands tokens of some names. */
enum code gguf_tokenizer(struct gguf_buffer *b, const struct arch *a, const struct ckpt_companion *list, int n, const char *name,
                         const char *where) MUST_USE;

#endif
