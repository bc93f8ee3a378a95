/* Models of the sm_80 instructions of ptx.cuh: ldmatrix, mma, reductions to memory. Fragment layouts: PTX ISA 9.0, "Matrix Fragments
 * for mma.m16n8k16 with floating point type" and "ldmatrix"; tests/device/test_simt.c has them once more as tables. */
#include <stdio.h>

#include "state.h"

using namespace simt;

uint32_t simt_smem_addr(const void *p, const char *file, int line)
{
    at(file, line);
    if (!is_shared_region(p))
        fault(SIMT_BOUNDS, current, "smem_addr of %s, which is not shared memory", place(p));
    return shared_address(p);
}

struct matrices { uint32_t *r; uint32_t row; };

/* Row addresses are given by lanes 8 m .. 8 m + 7; each row is read in the name of the lane that gave it. */
static void ldmatrix(void *const *arg, unsigned mask, int n, int trans)
{
    if (mask != 0xffffffffu)
        fault(SIMT_MODEL, current, "ldmatrix by lanes 0x%08x: the whole warp must take part", mask);
    for (int m = 0; m < n; m++) {
        uint16_t x[8][8];
        memset(x, 0xff, sizeof x);
        for (int i = 0; i < 8; i++) {
            const int l = 8 * m + i;
            if (arg[l] != NULL)
                load(lane(l), x[i], shared(((struct matrices *)arg[l])->row), 16, 16);
        }
        for (int l = 0; l < SIMT_LANES; l++) {
            const int g = l >> 2, t = l & 3;
            if (arg[l] != NULL)
                ((struct matrices *)arg[l])->r[m] = trans ? x[2 * t][g] | (uint32_t)x[2 * t + 1][g] << 16 : x[g][2 * t] | (uint32_t)x[g][2 * t + 1] << 16;
        }
    }
}
static void ldmatrix_x4(void *const *arg, unsigned mask) { ldmatrix(arg, mask, 4, 0); }
static void ldmatrix_x4t(void *const *arg, unsigned mask) { ldmatrix(arg, mask, 4, 1); }
static void ldmatrix_x2(void *const *arg, unsigned mask) { ldmatrix(arg, mask, 2, 0); }
static void ldmatrix_x2t(void *const *arg, unsigned mask) { ldmatrix(arg, mask, 2, 1); }

void simt_ldmatrix(uint32_t *r, int n, int trans, uint32_t row, const char *file, int line)
{
    at(file, line);
    struct matrices mine = {r, row};
    collective("ldmatrix", n == 4 ? (trans ? ldmatrix_x4t : ldmatrix_x4) : trans ? ldmatrix_x2t : ldmatrix_x2, 0xffffffffu, &mine, 0);
}

static inline float bf16_half(uint32_t pair, int h)
{
    const uint32_t bits = h ? pair & 0xffff0000u : pair << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

struct product { float *d; const uint32_t *a; uint32_t b[2]; };

static void mma(void *const *arg, unsigned mask)
{
    if (mask != 0xffffffffu) {
        fault(SIMT_MODEL, current, "mma by lanes 0x%08x: the whole warp must take part", mask);
        return;
    }
    float a[16][16], b[8][16]; /* b by column */
    for (int l = 0; l < SIMT_LANES; l++) {
        const struct product *p = (struct product *)arg[l];
        const int g = l >> 2, t = l & 3;
        for (int r = 0; r < 4; r++)
            for (int h = 0; h < 2; h++)
                a[g + 8 * (r & 1)][2 * t + h + 8 * (r >> 1)] = bf16_half(p->a[r], h);
        for (int r = 0; r < 2; r++)
            for (int h = 0; h < 2; h++)
                b[g][2 * t + h + 8 * r] = bf16_half(p->b[r], h);
    }
    for (int l = 0; l < SIMT_LANES; l++) {
        struct product *p = (struct product *)arg[l];
        const int g = l >> 2, t = l & 3;
        for (int i = 0; i < 4; i++) {
            const float *x = a[g + 8 * (i >> 1)], *y = b[2 * t + (i & 1)];
            float sum = 0; /* the order of a tensor core is not documented */
            for (int k = 0; k < 16; k++)
                sum += x[k] * y[k];
            p->d[i] += sum;
        }
    }
}

void simt_mma_bf16(float *d, const uint32_t *a, uint32_t b0, uint32_t b1, const char *file, int line)
{
    at(file, line);
    struct product mine = {d, a, {b0, b1}};
    collective("mma", mma, 0xffffffffu, &mine, 0);
}

void simt_red_add(float *p, int n, float a, float b, float c, float d, const char *file, int line)
{
    at(file, line);
    const float v[4] = {a, b, c, d};
    if (touch(current, p, (size_t)n * 4, WRITE | ATOMIC, (size_t)n * 4))
        for (int i = 0; i < n; i++)
            p[i] += v[i];
}
