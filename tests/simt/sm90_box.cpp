/* Tensor maps in the executor, and the boxes they describe: packed in shared memory, innermost axis first, every 16-byte chunk at its
 * address swizzled by its own bits 7-9; what lies outside the tensor is left out (PTX ISA, "Tensors", "Swizzling Modes", "Out of bound access"). */
#include <string.h>

#include "kernels/cuda/tensor_map.cuh"
#include "sm90_model.h"

using namespace simt;

static_assert(sizeof(struct sm90_map) <= sizeof(CUDA_NS::tensor_map), "fits");
static const uint32_t magic = 0x7e4507a9;

void CUDA_NS::tensor_map_pack(tensor_map *map, const struct tensor_map_spec *s)
{
    struct sm90_map m = {};
    m.magic = magic;
    m.rank = (uint8_t)s->rank;
    m.size = (uint8_t)dtype_bytes(s->type);
    m.swizzle = (uint8_t)s->swizzle;
    m.base = (char *)s->base;
    m.stride[0] = m.size;
    for (int i = 0; i < 4; i++) {
        m.n[i] = i < s->rank ? s->n[i] : 1;
        m.box[i] = i < s->rank ? s->box[i] : 1;
        if (i > 0)
            m.stride[i] = i < s->rank ? s->stride_bytes[i - 1] : 0;
    }
    memset(map, 0, sizeof *map);
    memcpy(map, &m, sizeof m);
}

int sm90_map_read(struct sm90_map *m, const void *map, const char *what)
{
    memcpy(m, map, sizeof *m);
    if ((uintptr_t)map % 64 != 0 || m->magic != magic) {
        fault(SIMT_MODEL, self(), "%s: no tensor map at %p (tensor_map_make, passed by value as __grid_constant__)", what, map);
        return 0;
    }
    if (m->rank != 4) {
        fault(SIMT_MODEL, self(), "%s: the tensor map has %d axes, the instruction 4", what, m->rank);
        return 0;
    }
    return 1;
}

int sm90_box_aligned(const struct sm90_map *m, uint32_t address, const char *what)
{
    uint32_t to = m->swizzle == 0 ? 128 : 8u * m->swizzle;
    if (address % to == 0)
        return 1;
    fault(SIMT_MISALIGNED, self(), "%s: the box at %s is not aligned to %u bytes (swizzle %d)", what, place(shared(address)), to, m->swizzle);
    return 0;
}

uint32_t sm90_box_row_bytes(const struct sm90_map *m)
{
    return (uint32_t)m->box[0] * m->size;
}
int sm90_box_rows(const struct sm90_map *m)
{
    return m->box[1] * m->box[2] * m->box[3];
}

int sm90_box_row(const struct sm90_map *m, const int *c, int r, int *from, int *to, char **p)
{
    int64_t at[4] = {c[0], c[1] + r % m->box[1], c[2] + r / m->box[1] % m->box[2], c[3] + r / m->box[1] / m->box[2]};
    char *q = m->base;
    for (int i = 1; i < 4; i++) {
        if (at[i] < 0 || at[i] >= m->n[i])
            return 0;
        q += at[i] * m->stride[i];
    }
    *from = at[0] < 0 ? (int)(at[0] < -m->box[0] ? m->box[0] : -at[0]) : 0;
    *to = at[0] + m->box[0] > m->n[0] ? (int)(m->n[0] - at[0]) : m->box[0];
    if (*from >= *to)
        return 0;
    *p = q + (at[0] + *from) * m->size;
    return 1;
}

void sm90_box_copy(const struct sm90_map *m, uint32_t address, char *packed, int to_shared)
{
    uint32_t bytes = sm90_box_row_bytes(m) * (uint32_t)sm90_box_rows(m);
    for (uint32_t i = 0; i < bytes; i += 16) {
        char *s = (char *)shared(sm90_swizzle(address + i, m->swizzle));
        memcpy(to_shared ? s : packed + i, to_shared ? packed + i : s, 16);
    }
}
