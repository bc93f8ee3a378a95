/* Canonical tensors under llama.cpp's names (src/llama-arch.cpp) and in its forms: q | k | v and gate | up fused where an
 * architecture wants that, rows of q and k paired (2i, 2i+1) where it rotates such pairs, vectors and positions in f32. */
#include <stdio.h>
#include <string.h>

#include "gguf.h"

static const char *const NAMES[T_SLOTS] = {
    [T_EMBED] = "token_embd.weight",
    [T_EMBED_NORM_W] = "token_embd_norm.weight",
    [T_EMBED_NORM_B] = "token_embd_norm.bias",
    [T_POS] = "position_embd.weight",
    [T_ATTN_NORM_W] = "attn_norm.weight",
    [T_ATTN_NORM_B] = "attn_norm.bias",
    [T_Q_W] = "attn_q.weight",
    [T_K_W] = "attn_k.weight",
    [T_V_W] = "attn_v.weight",
    [T_Q_B] = "attn_q.bias",
    [T_K_B] = "attn_k.bias",
    [T_V_B] = "attn_v.bias",
    [T_Q_NORM_W] = "attn_q_norm.weight",
    [T_K_NORM_W] = "attn_k_norm.weight",
    [T_O_W] = "attn_output.weight",
    [T_O_B] = "attn_output.bias",
    [T_MLP_NORM_W] = "ffn_norm.weight",
    [T_MLP_NORM_B] = "ffn_norm.bias",
    [T_GATE_W] = "ffn_gate.weight",
    [T_UP_W] = "ffn_up.weight",
    [T_GATE_B] = "ffn_gate.bias",
    [T_UP_B] = "ffn_up.bias",
    [T_DOWN_W] = "ffn_down.weight",
    [T_DOWN_B] = "ffn_down.bias",
    [T_FINAL_NORM_W] = "output_norm.weight",
    [T_FINAL_NORM_B] = "output_norm.bias",
    [T_HEAD_W] = "output.weight",
    [T_HEAD_B] = "output.bias",
};

static const char *norm_name(const struct gguf_row *row, const struct arch *a, enum tensor_slot s)
{
    if (a->norm_place == NORM_POST_SUBLAYER && s == T_ATTN_NORM_W)
        return "post_attention_norm.weight";
    if (a->norm_place == NORM_POST_SUBLAYER && s == T_MLP_NORM_W)
        return "post_ffw_norm.weight";
    if (!strcmp(row->name, "falcon") && a->residual == RESIDUAL_PARALLEL_TWO_NORMS) /* attn_norm feeds its MLP */
        switch (s) {
        case T_ATTN_NORM_W: return "attn_norm_2.weight";
        case T_ATTN_NORM_B: return "attn_norm_2.bias";
        case T_MLP_NORM_W: return "attn_norm.weight";
        case T_MLP_NORM_B: return "attn_norm.bias";
        default: break;
        }
    return NULL;
}

/* A part of q | k | v or gate | up: where it begins, of how many rows. */
static const char *fused_name(const struct gguf_row *row, const struct arch_block *b, enum tensor_slot s, int64_t *first, int64_t *rows)
{
    int64_t q = b->H * b->D, k = b->G * b->D;
    int bias = s == T_Q_B || s == T_K_B || s == T_V_B;
    switch (s) {
    case T_Q_W: case T_Q_B: case T_K_W: case T_K_B: case T_V_W: case T_V_B:
        if (!(row->traits & GGUF_QKV))
            return NULL;
        *first = s == T_Q_W || s == T_Q_B ? 0 : s == T_K_W || s == T_K_B ? q : q + k;
        *rows = q + 2 * k;
        return bias ? "attn_qkv.bias" : "attn_qkv.weight";
    case T_GATE_W: case T_UP_W:
        if (!(row->traits & GGUF_GATE_UP))
            return NULL;
        *first = s == T_GATE_W ? 0 : b->F;
        *rows = 2 * b->F;
        return "ffn_up.weight";
    default: return NULL;
    }
}

void gguf_place(const struct gguf_row *row, const struct arch *a, const struct tensor_spec *t, struct gguf_place *p)
{
    const struct arch_block *b = &a->stack[STACK_DEC].block[t->layer < 0 ? 0 : t->layer];
    memset(p, 0, sizeof *p);
    p->nd = t->nd;
    p->n[0] = t->n[0];
    p->n[1] = t->n[1];
    const char *name = fused_name(row, b, t->slot, &p->first, &p->n[0]);
    if (!name)
        name = norm_name(row, a, t->slot);
    if (!name)
        name = NAMES[t->slot];
    CHECK(name);
    if (t->layer >= 0)
        snprintf(p->name, sizeof p->name, "blk.%lld.%s", (long long)t->layer, name);
    else
        snprintf(p->name, sizeof p->name, "%s", name);

    int query = t->slot == T_Q_W || t->slot == T_Q_B, key = t->slot == T_K_W || t->slot == T_K_B;
    if (row->traits & GGUF_PAIRS && (query || key))
        p->rotary = b->D;
    if (a->qk_norm == QK_NORM_PER_HEAD && (t->slot == T_Q_NORM_W || t->slot == T_K_NORM_W)) { /* a matrix there */
        p->nd = 2;
        p->n[0] = t->n[0] / b->D;
        p->n[1] = b->D;
    }
    p->f32 = t->nd == 1 || t->slot == T_POS;
    p->add = a->norm == NORM_RMS1P && (t->slot == T_ATTN_NORM_W || t->slot == T_MLP_NORM_W || t->slot == T_FINAL_NORM_W) ? 1 : 0;
}
