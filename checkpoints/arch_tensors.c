/* Which tensors a model has, in memory order, from the one table ARCH_TENSORS. Presence and shape of a slot are the only
 * knowledge here; families map their own names onto these.
 *   q [H*D, C]   k [G*D, C]   v [G*Dv, C]   o [C, H*Dv]   gate, up [F, C]   down [C, F]   pos [P, C]
 *   embed, head [V, C], or [V, C_e] with embed_proj_in [C, C_e] and embed_proj_out [C_e, C]
 *   q_norm, k_norm [D] by head; [H*D], [G*D] per head and over the full width */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"

struct slot_info { const char *name; enum pool_kind pool; int decay; };
#define SLOT_INFO(slot, name, pool, decay) {name, pool, decay},
static const struct slot_info SLOTS[T_SLOTS] = {ARCH_TENSORS(SLOT_INFO)};

static int is_layer_slot(enum tensor_slot s) { return s >= T_ATTN_NORM_W && s <= T_DOWN_B; }

/* Shape of a slot; returns the number of dimensions, 0 when the model has no such tensor. */
static int slot_shape(const struct arch *a, const struct arch_block *b, enum tensor_slot s, int64_t n[2])
{
    int has_norm_w = a->norm != NORM_LAYER_NOP;
    int has_norm_b = has_norm_w && (a->bias & BIAS_NORM);
    int has_mlp_norm = a->residual != RESIDUAL_PARALLEL_ONE_NORM;
    int has_final_norm = a->norm_place != NORM_POST_RESIDUAL;
    int gated = mlp_is_gated(a->mlp);
    int present = 1;
    int64_t E = a->embed_proj ? a->embed_proj : a->C;
    n[0] = n[1] = 1;

#define MATRIX(rows, columns) (n[0] = (rows), n[1] = (columns), 2)
#define VECTOR(length) (n[0] = (length), 1)
    int nd = 0;
    switch (s) {
    case T_EMBED: nd = MATRIX(a->V, E); break;
    case T_EMBED_PROJ_IN: nd = MATRIX(a->C, E); present = a->embed_proj != 0; break;
    case T_EMBED_NORM_W: nd = VECTOR(a->C); present = a->embed_norm; break;
    case T_EMBED_NORM_B: nd = VECTOR(a->C); present = a->embed_norm && (a->bias & BIAS_NORM); break;
    case T_POS: nd = MATRIX(a->max_positions + a->pos_offset, a->C); present = a->pos == POS_LEARNED; break;
    case T_ATTN_NORM_W: nd = VECTOR(a->C); present = has_norm_w; break;
    case T_ATTN_NORM_B: nd = VECTOR(a->C); present = has_norm_b; break;
    case T_Q_W: nd = MATRIX(b->H * b->D, a->C); break;
    case T_K_W: nd = MATRIX(b->G * b->D, a->C); break;
    case T_V_W: nd = MATRIX(b->G * b->Dv, a->C); break;
    case T_Q_B: nd = VECTOR(b->H * b->D); present = (a->bias & BIAS_Q) != 0; break;
    case T_K_B: nd = VECTOR(b->G * b->D); present = (a->bias & BIAS_K) != 0; break;
    case T_V_B: nd = VECTOR(b->G * b->Dv); present = (a->bias & BIAS_V) != 0; break;
    case T_Q_NORM_W: nd = VECTOR(a->qk_norm == QK_NORM_HEAD ? b->D : b->H * b->D); present = a->qk_norm != QK_NORM_NONE; break;
    case T_K_NORM_W: nd = VECTOR(a->qk_norm == QK_NORM_HEAD ? b->D : b->G * b->D); present = a->qk_norm != QK_NORM_NONE; break;
    case T_O_W: nd = MATRIX(a->C, b->H * b->Dv); break;
    case T_O_B: nd = VECTOR(a->C); present = (a->bias & BIAS_O) != 0; break;
    case T_MLP_NORM_W: nd = VECTOR(a->C); present = has_norm_w && has_mlp_norm; break;
    case T_MLP_NORM_B: nd = VECTOR(a->C); present = has_norm_b && has_mlp_norm; break;
    case T_GATE_W: nd = MATRIX(b->F, a->C); present = gated; break;
    case T_UP_W: nd = MATRIX(b->F, a->C); break;
    case T_GATE_B: nd = VECTOR(b->F); present = gated && (a->bias & BIAS_MLP_IN); break;
    case T_UP_B: nd = VECTOR(b->F); present = (a->bias & BIAS_MLP_IN) != 0; break;
    case T_DOWN_W: nd = MATRIX(a->C, b->F); break;
    case T_DOWN_B: nd = VECTOR(a->C); present = (a->bias & BIAS_MLP_OUT) != 0; break;
    case T_FINAL_NORM_W: nd = VECTOR(a->C); present = has_norm_w && has_final_norm; break;
    case T_FINAL_NORM_B: nd = VECTOR(a->C); present = has_norm_b && has_final_norm; break;
    case T_EMBED_PROJ_OUT: nd = MATRIX(E, a->C); present = a->embed_proj != 0; break;
    case T_HEAD_W: nd = MATRIX(a->V, E); present = !a->tied; break;
    case T_HEAD_B: nd = VECTOR(a->V); present = (a->bias & BIAS_HEAD) != 0; break;
    case T_SLOTS: CHECK(0);
    }
#undef MATRIX
#undef VECTOR
    return present ? nd : 0;
}

static void spec_add(struct tensor_spec *specs, int *count, const struct arch *a, int64_t layer, enum tensor_slot s)
{
    static const struct arch_block none;
    const struct arch_block *b = layer < 0 ? &none : &a->stack[STACK_DEC].block[layer];
    struct tensor_spec *t = &specs[*count];
    memset(t, 0, sizeof *t);
    t->nd = slot_shape(a, b, s, t->n);
    if (!t->nd)
        return;
    if (layer >= 0)
        snprintf(t->name, sizeof t->name, "dec.%lld.%s", (long long)layer, SLOTS[s].name);
    else
        snprintf(t->name, sizeof t->name, "%s%s", s == T_FINAL_NORM_W || s == T_FINAL_NORM_B ? "dec." : "", SLOTS[s].name);
    t->slot = s;
    t->stack = STACK_DEC;
    t->layer = layer;
    t->pool = SLOTS[s].pool;
    t->decay = SLOTS[s].decay;
    ++*count;
}

enum code arch_tensors(const struct arch *a, struct tensor_spec **specs, int *n)
{
    *specs = NULL;
    *n = 0;
    if (a->stack[STACK_ENC].present)
        return fail(ERR_UNSUPPORTED, "%s: encoder-decoder models are not supported yet", a->family);
    if (a->pos == POS_REL_BIAS)
        return fail(ERR_UNSUPPORTED, "%s: relative position biases have no place in the tensor table yet", a->family);
    int64_t L = a->stack[STACK_DEC].L;
    struct tensor_spec *list = malloc((size_t)((L + 1) * T_SLOTS) * sizeof *list);
    if (!list)
        return fail(ERR_MEMORY, "out of memory for the tensor table of %lld layers", (long long)L);
    int count = 0;
    for (enum tensor_slot s = 0; s < T_ATTN_NORM_W; s++)
        spec_add(list, &count, a, -1, s);
    for (int64_t l = 0; l < L; l++)
        for (enum tensor_slot s = 0; s < T_SLOTS; s++)
            if (is_layer_slot(s))
                spec_add(list, &count, a, l, s);
    for (enum tensor_slot s = T_FINAL_NORM_W; s < T_SLOTS; s++)
        spec_add(list, &count, a, -1, s);
    *specs = list;
    *n = count;
    return OK;
}
