/* The words that the model at rest (checkpoints/) and the arithmetic (kernels/) share, so that neither includes the other. */
#ifndef GQAKIT_BASE_KINDS_H
#define GQAKIT_BASE_KINDS_H

enum norm_kind {
    NORM_RMS,      /* x * rstd * w, rstd = 1/sqrt(mean(x^2) + eps) (Zhang, Sennrich 2019) */
    NORM_RMS1P,    /* Gemma: x * rstd * (1 + w) */
    NORM_LAYER,    /* (x - mean) * rstd * w + b (Ba, Kiros, Hinton 2016) */
    NORM_LAYER_NOP /* OLMo: LayerNorm without w and b */
};

enum mlp_kind {
    MLP_SWIGLU,     /* silu(gate) * up (Shazeer 2020) */
    MLP_GEGLU_TANH, /* gelu_tanh(gate) * up */
    MLP_GEGLU_ERF,
    MLP_GELU_ERF, /* ungated: gelu(up) */
    MLP_GELU_TANH,
    MLP_RELU
};

/* 1 for the kinds with a gate matrix. */
static inline int mlp_is_gated(enum mlp_kind k) { return k == MLP_SWIGLU || k == MLP_GEGLU_TANH || k == MLP_GEGLU_ERF; }

#endif
