/* The LLaMA shape that the benchmarks of whole models run: the dims are the caller's, everything else is fixed here. */
#ifndef GQAKIT_TOOLS_BENCH_BENCH_ARCH_H
#define GQAKIT_TOOLS_BENCH_BENCH_ARCH_H

#include <math.h>
#include <stdio.h>

#include "model/model.h"

struct bench_shape { int64_t C, L, H, G, D, F, V, positions; int tied; };

/* Rotary positions over whole heads, SwiGLU, softmax scale 1/sqrt(D). ERR_* from arch_check, which names `program`. */
static inline enum code bench_arch(struct arch *a, const struct bench_shape *s, const char *program)
{
    TRY(arch_init(a, s->L));
    snprintf(a->family, sizeof a->family, "llama");
    a->C = s->C;
    a->V = s->V;
    a->max_positions = s->positions;
    a->norm_eps = 1e-5;
    a->pos = POS_ROPE;
    a->rope.dims = s->D;
    a->rope.theta = 10000.0;
    a->mlp = MLP_SWIGLU;
    a->attn_scale = 1.0 / sqrt((double)s->D);
    a->tied = s->tied;
    a->dtype = DT_F32;
    for (int64_t l = 0; l < s->L; l++) {
        struct arch_block *b = &a->stack[STACK_DEC].block[l];
        b->H = s->H;
        b->G = s->G;
        b->D = b->Dv = s->D;
        b->F = s->F;
    }
    return arch_check(a, program);
}

#endif
