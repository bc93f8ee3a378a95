/* c [M,N] = alpha op(a) op(b) + beta c for f32 with AVX-512: the packed algorithm of Goto and van de Geijn (2008, "Anatomy of
 * high-performance matrix multiplication"), with blocks for cores whose second cache can feed the registers.
 *   Micro-kernel: 14 x 32 of c in 28 registers over the whole depth of a block; per step two vectors of b and 14 broadcasts of a.
 *   Blocks of a, MC x KC, are packed as slivers [k][14] by the team together; each thread owns a range of c's columns and packs
 *   its part of b, KC x NC, as slivers [k][32] that stay in its second cache while the slivers of a stream past.
 * Rows and columns beyond the edge are packed as zeros and not stored. Every element of c is summed over k in the same order
 * whatever M, N and the team, so results do not depend on how the work is cut, nor on the kernels a BLAS picks for this CPU. */
#include "gemm.h"

#include <immintrin.h>
#include <omp.h>

/* MC x KC of a (3.1 MiB; 1036 rows, so that 1024 make one block) stays in the shared cache, KC x NC of b (576 KiB) in a second cache of 1 MiB. Prefetch distances in steps
 * of k: a comes from the shared cache, b from the second one. */
enum { MR = 14, NR = 32, MC = MR * 74, KC = 768, NC = NR * 6, AHEAD_A = 48, AHEAD_B = 4 };

size_t cpu_gemm_avx512_bytes(int threads)
{
    return sizeof(float) * ((size_t)MC * KC + (size_t)threads * NC * KC);
}

/* ---- packing -------------------------------------------------------------------------------------------------------- */

static inline __mmask16 low_lanes(int64_t n) { return (__mmask16)(n >= 16 ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1u); }

/* dst[k * width + j] = src[j * ld + k] for j, k < 16; a line beyond `rows` is zero, only set bits of `columns` exist, of each
 * result the low `keep` lanes are stored. */
static inline __attribute__((always_inline)) void turn(float *dst, int64_t width, const float *src, int64_t ld, int64_t rows,
                                                       __mmask16 columns, __mmask16 keep)
{
    __m512 r[16], t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        r[i] = _mm512_maskz_loadu_ps(i < rows ? columns : (__mmask16)0, src + i * ld);
        _mm_prefetch((const char *)(src + i * ld + 64), _MM_HINT_T0);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 2]), c = _mm512_castps_pd(t[4 * i + 1]),
                d = _mm512_castps_pd(t[4 * i + 3]);
        r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
        r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        _mm512_mask_storeu_ps(dst + i * width, columns >> i & 1 ? keep : (__mmask16)0, r[i]);
}

static void turn_edge(float *dst, int64_t width, const float *src, int64_t ld, int64_t rows, __mmask16 columns, __mmask16 keep)
{
    turn(dst, width, src, ld, rows, columns, keep);
}

/* Slivers [k][width] of `count` lines of the operand, one after the other; line j's element k is src[j * line + k * step]. */
static void pack(float *dst, int width, const float *src, int64_t line, int64_t step, int64_t count, int64_t depth)
{
    if (step == 1) { /* lines are rows in memory: turn 16 x 16 at a time */
        for (int64_t j = 0; j < count; j += width, dst += width * depth, src += width * line)
            for (int half = 0; half < width; half += 16) {
                int64_t used = count - j - half, most = width - half;
                const float *from = src + half * line;
                float *to = dst + half;
                const __mmask16 keep = low_lanes(most);
                used = used < most ? used : most;
                int64_t k = 0;
                for (; k + 16 <= depth && used >= 16; k += 16)
                    turn(to + k * width, width, from + k, line, 16, 0xffff, 0xffff);
                for (; k + 16 <= depth && used == MR; k += 16)
                    turn(to + k * width, width, from + k, line, MR, 0xffff, low_lanes(MR));
                for (; k < depth; k += 16)
                    turn_edge(to + k * width, width, from + k, line, used, low_lanes(depth - k), keep);
            }
        return;
    }
    /* lines are columns: copy pieces of rows, 16 rows at a time so that what is written is one stream */
    const __mmask16 keep = low_lanes(width);
    for (int64_t k0 = 0; k0 < depth; k0 += 16) {
        const int64_t k1 = k0 + 16 < depth ? k0 + 16 : depth;
        for (int64_t j = 0; j < count; j += width) {
            const int64_t used = count - j;
            const __mmask16 first = (__mmask16)(low_lanes(used) & keep);
            const __mmask16 second = low_lanes(used - 16);
            float *to = dst + j * depth + k0 * width;
            const float *from = src + j + k0 * step;
            for (int64_t k = k0; k < k1; k++, to += width, from += step) {
                _mm_prefetch((const char *)(from + 64), _MM_HINT_T0);
                _mm512_mask_storeu_ps(to, keep, _mm512_maskz_loadu_ps(first, from));
                if (width > 16)
                    _mm512_storeu_ps(to + 16, _mm512_maskz_loadu_ps(second, from + 16));
            }
        }
    }
}

/* ---- the micro-kernel ---------------------------------------------------------------------------------------------- */

static inline void store_tile(float *c, __m512 sum, __m512 alpha, __m512 beta, int add, __mmask16 mask)
{
    __m512 v = _mm512_mul_ps(sum, alpha);
    if (add)
        v = _mm512_fmadd_ps(beta, _mm512_maskz_loadu_ps(mask, c), v);
    _mm512_mask_storeu_ps(c, mask, v);
}

/* c[MR,NR] of which rows x columns are stored. */
static void tile(float *c, int64_t ldc, const float *a, const float *b, int64_t depth, float alpha, float beta, int64_t rows, int64_t columns)
{
    __m512 s[MR][2];
    for (int i = 0; i < MR; i++) {
        s[i][0] = s[i][1] = _mm512_setzero_ps();
        if (i < rows) {
            _mm_prefetch((const char *)(c + i * ldc), _MM_HINT_T0);
            _mm_prefetch((const char *)(c + i * ldc + 16), _MM_HINT_T0);
            _mm_prefetch((const char *)(c + i * ldc + 31), _MM_HINT_T0);
        }
    }
    for (int64_t k = 0; k < depth; k++) {
        __m512 b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16);
        _mm_prefetch((const char *)(b + AHEAD_B * NR), _MM_HINT_T0);
        _mm_prefetch((const char *)(b + AHEAD_B * NR + 16), _MM_HINT_T0);
        _mm_prefetch((const char *)(a + AHEAD_A * MR), _MM_HINT_T0);
#pragma GCC unroll 14
        for (int i = 0; i < MR; i++) {
            __m512 x = _mm512_set1_ps(a[i]);
            s[i][0] = _mm512_fmadd_ps(x, b0, s[i][0]);
            s[i][1] = _mm512_fmadd_ps(x, b1, s[i][1]);
        }
        a += MR;
        b += NR;
    }
    __m512 va = _mm512_set1_ps(alpha), vb = _mm512_set1_ps(beta);
    int add = beta != 0.0f;
    const __mmask16 left = low_lanes(columns), right = low_lanes(columns - 16);
#pragma GCC unroll 14
    for (int i = 0; i < MR; i++)
        if (i < rows) {
            store_tile(c + i * ldc, s[i][0], va, vb, add, left);
            store_tile(c + i * ldc + 16, s[i][1], va, vb, add, right);
        }
}

/* ---- blocks ---------------------------------------------------------------------------------------------------------- */

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Equal blocks of at most `most`, a multiple of `unit`. */
static int64_t even_block(int64_t n, int64_t most, int64_t unit)
{
    int64_t parts = (n + most - 1) / most, block = (n + parts - 1) / parts;
    return (block + unit - 1) / unit * unit;
}

static void columns_run(const struct gemm_job *g, const float *packed_a, float *packed_b, int64_t m0, int64_t rows, int64_t k0, int64_t depth,
                        int64_t n0, int64_t n1, int64_t nc)
{
    const int64_t line = g->trans_b ? g->ldb : 1, step = g->trans_b ? 1 : g->ldb;
    const float beta = k0 == 0 ? g->beta : 1.0f;
    for (int64_t j0 = n0; j0 < n1; j0 += nc) {
        int64_t width = least(nc, n1 - j0);
        pack(packed_b, NR, g->b + j0 * line + k0 * step, line, step, width, depth);
        for (int64_t i = 0; i < rows; i += MR)
            for (int64_t j = 0; j < width; j += NR)
                tile(g->c + (m0 + i) * g->ldc + j0 + j, g->ldc, packed_a + i * depth, packed_b + j * depth, depth, g->alpha, beta,
                     least(MR, rows - i), least(NR, width - j));
    }
}

void cpu_gemm_avx512(const struct gemm_job *g)
{
    const int64_t mc = even_block(g->M, MC, MR), kc = even_block(g->K, KC, 1);
    const int64_t line = g->trans_a ? 1 : g->lda, step = g->trans_a ? g->lda : 1;
    float *packed_a = g->work;
#pragma omp parallel num_threads(g->threads)
    {
        const int team = omp_get_num_threads(), me = omp_get_thread_num();
        const int64_t slivers = (g->N + NR - 1) / NR;
        const int64_t n0 = slivers * me / team * NR, n1 = least(slivers * (me + 1) / team * NR, g->N);
        const int64_t nc = n1 > n0 ? even_block(n1 - n0, NC, NR) : NR;
        float *packed_b = packed_a + (size_t)MC * KC + (size_t)me * NC * KC;
        for (int64_t m0 = 0; m0 < g->M; m0 += mc)
            for (int64_t k0 = 0; k0 < g->K; k0 += kc) {
                const int64_t rows = least(mc, g->M - m0), depth = least(kc, g->K - k0), groups = (rows + MR - 1) / MR;
                const int64_t i0 = groups * me / team * MR, i1 = least(groups * (me + 1) / team * MR, rows);
                pack(packed_a + i0 * depth, MR, g->a + (m0 + i0) * line + k0 * step, line, step, i1 - i0, depth);
#pragma omp barrier
                columns_run(g, packed_a, packed_b, m0, rows, k0, depth, n0, n1, nc);
#pragma omp barrier
            }
    }
}
