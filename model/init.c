/* Fresh parameters: normal(0, sd), the two projections into the residual stream scaled by 1/sqrt(2L) (Radford et al. 2019,
 * section 2.3), norm weights one (zero where the kind adds one itself), biases zero. Each tensor has a random stream of its
 * own, named after it, so a value depends on the seed, the name and the index alone. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "parts.h"

enum { PART = 1 << 13 }; /* numbers a thread makes at a time */

static int is_norm_weight(enum tensor_slot s)
{
    return s == T_ATTN_NORM_W || s == T_MLP_NORM_W || s == T_FINAL_NORM_W || s == T_EMBED_NORM_W || s == T_Q_NORM_W || s == T_K_NORM_W;
}

static enum code init_block(struct model *m, const struct model_param *p, float *block, int64_t first, int64_t n, double sd, uint64_t seed)
{
    enum tensor_slot s = p->spec.slot;
    if (p->spec.nd == 2) {
        if (s == T_O_W || s == T_DOWN_W)
            sd /= sqrt(2.0 * (double)m->arch.stack[STACK_DEC].L);
        const uint64_t stream = random_stream_of(p->spec.name);
#pragma omp parallel for num_threads(host_threads()) schedule(static)
        for (int64_t part = 0; part < (n + PART - 1) / PART; part++) {
            const int64_t at = part * PART, count = n - at < PART ? n - at : PART;
            random_normal_f32(block + at, count, first + at, (float)sd, seed, stream, 0);
        }
    } else {
        float value = is_norm_weight(s) && m->arch.norm != NORM_RMS1P ? 1.0f : 0.0f;
        for (int64_t i = 0; i < n; i++)
            block[i] = value;
    }
    size_t width = dtype_bytes(p->master.dtype);
    if (p->master.dtype != DT_F32) {
        uint16_t *narrow = (uint16_t *)(void *)(block + n);
        convert_elements(narrow, p->master.dtype, block, DT_F32, (size_t)n);
        return m->be->device_copy(m->dev, (char *)p->master.p + (size_t)first * width, narrow, (size_t)n * width);
    }
    return m->be->device_copy(m->dev, (char *)p->master.p + (size_t)first * width, block, (size_t)n * width);
}

enum code model_init(struct model *m, double sd, uint64_t seed)
{
    enum { BLOCK = 1 << 18 };
    float *block = malloc(2 * BLOCK * sizeof *block);
    if (!block)
        return fail(ERR_MEMORY, "out of memory for a block of fresh parameters");
    enum code c = OK;
    for (int i = 0; i < m->n_params && c == OK; i++) {
        const struct model_param *p = &m->param[i];
        for (int64_t at = 0; at < p->count && c == OK; at += BLOCK)
            c = init_block(m, p, block, at, p->count - at < BLOCK ? p->count - at : BLOCK, sd, seed);
    }
    free(block);
    return c == OK ? model_refresh(m) : c;
}
