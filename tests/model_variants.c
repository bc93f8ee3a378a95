/* See model_variants.h. C = 24, H = 6 (no power of two), G = 3, D = 8, two layers, unless a variant says otherwise. */
#include "model_variants.h"

#include <math.h>

enum { BIAS_QKV = BIAS_Q | BIAS_K | BIAS_V, BIAS_MLP = BIAS_MLP_IN | BIAS_MLP_OUT, BIAS_ALL = BIAS_QKV | BIAS_O | BIAS_MLP | BIAS_NORM };

static void layer_norm(struct arch *a, unsigned bias, enum mlp_kind mlp)
{
    a->norm = NORM_LAYER;
    a->bias = bias;
    a->mlp = mlp;
}

static void groups(struct arch *a, int64_t G0, int64_t G1)
{
    a->stack[STACK_DEC].block[0].G = G0;
    a->stack[STACK_DEC].block[1].G = G1;
}

static void alibi(struct arch *a, double bias_max)
{
    a->pos = POS_ALIBI;
    a->alibi_bias_max = bias_max;
}

static void gptj(struct arch *a)
{
    layer_norm(a, BIAS_NORM | BIAS_MLP | BIAS_HEAD, MLP_GELU_TANH);
    a->residual = RESIDUAL_PARALLEL_ONE_NORM;
    a->rope.dims = 4;
    a->tied = 0;
}

static void phi(struct arch *a)
{
    gptj(a);
    a->bias = BIAS_ALL | BIAS_HEAD;
}

static void neox(struct arch *a)
{
    layer_norm(a, BIAS_ALL, MLP_GELU_ERF);
    a->residual = RESIDUAL_PARALLEL_TWO_NORMS;
    a->rope.dims = 2;
    a->tied = 0;
}

static void cohere(struct arch *a) /* one norm with gated MLP, scales on both ends */
{
    layer_norm(a, 0, MLP_SWIGLU);
    a->residual = RESIDUAL_PARALLEL_ONE_NORM;
    a->residual_scale = 0.7;
    a->logit_scale = 0.5;
}

static void falcon_rw(struct arch *a)
{
    layer_norm(a, BIAS_ALL, MLP_GELU_ERF);
    alibi(a, 8.0);
    a->alibi_scaled = 1;
}

static void falcon_mqa(struct arch *a)
{
    layer_norm(a, BIAS_NORM, MLP_GELU_ERF);
    a->residual = RESIDUAL_PARALLEL_ONE_NORM;
    alibi(a, 8.0);
    a->alibi_scaled = 1;
    groups(a, 1, 1);
}

static void falcon_two_norms(struct arch *a)
{
    layer_norm(a, BIAS_NORM, MLP_GELU_ERF);
    a->residual = RESIDUAL_PARALLEL_TWO_NORMS;
    groups(a, 2, 1);
}

static void bloom(struct arch *a)
{
    layer_norm(a, BIAS_ALL, MLP_GELU_TANH);
    alibi(a, 8.0);
    a->embed_norm = 1;
}

static void mpt(struct arch *a)
{
    layer_norm(a, 0, MLP_GELU_ERF);
    alibi(a, 4.0);
    a->clip_qkv = 0.8;
}

static void olmo(struct arch *a)
{
    a->norm = NORM_LAYER_NOP;
    a->clip_qkv = 0.9;
}

static void olmo2(struct arch *a)
{
    a->norm_place = NORM_POST_SUBLAYER;
    a->qk_norm = QK_NORM_FULL;
    a->tied = 0;
}

static void opt_350m(struct arch *a)
{
    layer_norm(a, BIAS_ALL, MLP_RELU);
    a->norm_place = NORM_POST_RESIDUAL;
    a->pos = POS_LEARNED;
    a->pos_offset = 2;
    a->embed_proj = 12;
}

static void qwen3(struct arch *a) { a->qk_norm = QK_NORM_HEAD; }

static void stablelm_12b(struct arch *a)
{
    layer_norm(a, BIAS_NORM, MLP_SWIGLU);
    a->residual = RESIDUAL_PARALLEL_ONE_NORM;
    a->qk_norm = QK_NORM_PER_HEAD;
    a->rope.dims = 4;
    a->tied = 0;
}

static void gpt_neo(struct arch *a)
{
    layer_norm(a, BIAS_O | BIAS_MLP | BIAS_NORM, MLP_GELU_TANH);
    a->pos = POS_LEARNED;
    a->attn_scale = 1.0;
    a->stack[STACK_DEC].block[1].window = 4;
}

static void gpt2_scale_by_layer(struct arch *a)
{
    layer_norm(a, BIAS_ALL, MLP_GELU_TANH);
    a->pos = POS_LEARNED;
    a->stack[STACK_DEC].block[1].scale = a->attn_scale / 2.0;
}

static void gemma(struct arch *a)
{
    a->norm = NORM_RMS1P;
    a->mlp = MLP_GEGLU_TANH;
    a->embed_scale = sqrt(24.0);
    a->qk_norm = QK_NORM_HEAD;
}

/* Combinations that no family has. */
static void clip_and_norm(struct arch *a)
{
    layer_norm(a, BIAS_QKV, MLP_SWIGLU);
    a->clip_qkv = 0.9;
    a->qk_norm = QK_NORM_PER_HEAD;
    groups(a, 6, 2);
}

static void layers_differ_alibi(struct arch *a)
{
    struct arch_block *b = a->stack[STACK_DEC].block;
    a->norm_place = NORM_POST_SUBLAYER;
    alibi(a, 8.0);
    a->alibi_scaled = 1;
    a->qk_norm = QK_NORM_FULL;
    b[0].G = 6;
    b[0].window = 3;
    b[1].H = 4;
    b[1].G = 1;
    b[1].D = b[1].Dv = 10;
    b[1].F = 33;
    b[1].scale = 0.2;
}

static void wide_embedding(struct arch *a)
{
    a->embed_proj = 40;
    a->embed_norm = 1;
    a->embed_scale = 0.6;
    a->residual = RESIDUAL_PARALLEL_TWO_NORMS;
    a->clip_qkv = 0.9;
}

static void post_residual_rms(struct arch *a)
{
    a->norm_place = NORM_POST_RESIDUAL;
    a->embed_norm = 1;
    a->qk_norm = QK_NORM_FULL;
    a->clip_qkv = 0.9;
    groups(a, 2, 3);
}

const struct model_variant MODEL_VARIANTS[] = {
    {"gptj", gptj},
    {"phi", phi},
    {"gpt_neox", neox},
    {"cohere", cohere},
    {"falcon-rw", falcon_rw},
    {"falcon, one head, ALiBi", falcon_mqa},
    {"falcon, two norms", falcon_two_norms},
    {"bloom", bloom},
    {"mpt", mpt},
    {"olmo", olmo},
    {"olmo2", olmo2},
    {"opt-350m", opt_350m},
    {"qwen3", qwen3},
    {"stablelm-12b", stablelm_12b},
    {"gpt_neo", gpt_neo},
    {"gpt2, scale by layer", gpt2_scale_by_layer},
    {"gemma with query norms", gemma},
    {"clipped, then normed", clip_and_norm},
    {"layers differ, ALiBi", layers_differ_alibi},
    {"wide embedding", wide_embedding},
    {"norm on the sum, rms", post_residual_rms},
};

int model_variants(void)
{
    return (int)(sizeof MODEL_VARIANTS / sizeof *MODEL_VARIANTS);
}
