/* One product of a warpgroup, a [64,16] b [16,n] in bf16: its operands in shared memory under their descriptors (sm90_layout.h), or a in
 * the registers of 128 threads. Sums are f32 in the order of k, then added to the accumulators. */
#include <stdlib.h>
#include <string.h>

#include "sm90_model.h"

using namespace simt;

namespace {

float f32_of_bits(uint16_t b)
{
    uint32_t u = (uint32_t)b << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* ---- operands ---- */

void chunk_read(float *x, uint32_t address)
{
    uint16_t u[8];
    memcpy(u, shared(address), 16);
    for (int i = 0; i < 8; i++)
        x[i] = f32_of_bits(u[i]);
}

/* x[k][row], k of 16, `rows` rows. */
void operand_read(float *x, const struct sm90_operand *o, int mn_major, int rows)
{
    float c[8];
    if (mn_major) {
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < rows / 8; j++)
                chunk_read(x + k * rows + 8 * j, sm90_chunk_mn_major(o, j, k));
    } else {
        for (int r = 0; r < rows; r++)
            for (int h = 0; h < 2; h++) {
                chunk_read(c, sm90_chunk_k_major(o, r, h));
                for (int i = 0; i < 8; i++)
                    x[(8 * h + i) * rows + r] = c[i];
            }
    }
}

#define CHUNKS ((SIMT_SHARED_BASE + SIMT_SHARED_MAX + 65536) / 16)

void mark(uint64_t *set, uint32_t address, int *outside)
{
    if (address / 16 < CHUNKS)
        set[address / 1024] |= (uint64_t)1 << (address / 16 % 64);
    else
        *outside = 1;
}

/* Begins the reads of an operand: its chunks, neighbours together. */
void operand_begin(struct sm90_product *p, const struct sm90_operand *o, int mn_major, int rows, struct fiber *who)
{
    static uint64_t set[CHUNKS / 64 + 2];
    int outside = 0;
    memset(set, 0, sizeof set);
    if (mn_major) {
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < rows / 8; j++)
                mark(set, sm90_chunk_mn_major(o, j, k), &outside);
    } else {
        for (int r = 0; r < rows; r++)
            mark(set, sm90_chunk_k_major(o, r, 0), &outside), mark(set, sm90_chunk_k_major(o, r, 1), &outside);
    }
    if (outside) {
        fault(SIMT_BOUNDS, who, "wgmma: an operand lies past the end of shared memory");
        p->readable = 0;
        return;
    }
    for (size_t i = 0; i < CHUNKS;) {
        if (set[i / 64] >> (i % 64) == 0) {
            i = (i / 64 + 1) * 64;
            continue;
        }
        i += (size_t)__builtin_ctzll(set[i / 64] >> (i % 64));
        size_t end = i;
        while (end < CHUNKS && (set[end / 64] >> (end % 64) & 1))
            end++;
        struct token *t = begin(who, (char *)shared((uint32_t)(16 * i)), 16 * (end - i), READ | ASYNC, 16);
        if (t != NULL)
            p->token[p->tokens++] = t;
        else
            p->readable = 0;
        i = end;
    }
}

/* ---- arithmetic ---- */

__attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3"))) void multiply(float *value, const float *a, const float *b, int n,
                                                                                           int add)
{
    float sum[256];
    for (int m = 0; m < 64; m++) {
        for (int j = 0; j < n; j++)
            sum[j] = 0.0f;
        for (int k = 0; k < 16; k++) {
            float x = a[64 * k + m];
            for (int j = 0; j < n; j++)
                sum[j] += x * b[n * k + j];
        }
        for (int j = 0; j < n; j++)
            value[m * n + j] = add ? value[m * n + j] + sum[j] : sum[j];
    }
}

} // namespace

void sm90_product_begin(struct sm90_product *p, uint64_t a, uint64_t b, struct fiber *who)
{
    p->token = (struct token **)malloc(sizeof *p->token * 2 * (64 + 256));
    p->readable = 1;
    p->b = sm90_operand_decode(b);
    const char *why = sm90_operand_fault(&p->b, b, p->tb, p->n);
    if (why != NULL)
        fault(SIMT_MODEL, who, "wgmma: descriptor of b %016llx: %s", (unsigned long long)b, why);
    operand_begin(p, &p->b, p->tb, p->n, who);
    if (p->from_registers)
        return;
    p->a = sm90_operand_decode(a);
    if ((why = sm90_operand_fault(&p->a, a, p->ta, 64)) != NULL)
        fault(SIMT_MODEL, who, "wgmma: descriptor of a %016llx: %s", (unsigned long long)a, why);
    operand_begin(p, &p->a, p->ta, 64, who);
}

void sm90_product_compute(struct sm90_product *p)
{
    static float a[16 * 64], b[16 * 256];
    if (p->done)
        return;
    p->done = 1;
    if (p->readable) {
        if (p->from_registers) {
            for (int t = 0; t < 128; t++)
                for (int r = 0; r < 4; r++)
                    for (int h = 0, row, k; h < 2; h++) {
                        sm90_fragment_a(t, r, h, &row, &k);
                        a[64 * k + row] = f32_of_bits((uint16_t)(p->registers[t][r] >> (16 * h)));
                    }
        } else {
            operand_read(a, &p->a, p->ta, 64);
        }
        operand_read(b, &p->b, p->tb, p->n);
        multiply(p->value, a, b, p->n, p->add);
    }
}

void sm90_product_complete(struct sm90_product *p)
{
    sm90_product_compute(p);
    for (int i = 0; i < p->tokens; i++)
        finish(p->token[i], &p->clock, 24 + p->warpgroup);
    p->tokens = 0;
}
