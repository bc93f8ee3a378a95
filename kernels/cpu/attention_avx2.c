/* Attention with AVX2 and FMA: 8 lanes, 16 registers. What the shared files attention_*.inc need to know of the machine. */
#include "attention.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>

#define VEC __m256
#define LANES 8
#define BLOCK_ROWS 6 /* 6 x 2 accumulators + 2 vectors + 1 broadcast = 15 of 16 registers */
#define BLOCK_VECS 2

static inline VEC vec_set1(float x) { return _mm256_set1_ps(x); }
static inline VEC vec_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vec_store(float *p, VEC x) { _mm256_storeu_ps(p, x); }
static inline VEC vec_fma(VEC a, VEC b, VEC c) { return _mm256_fmadd_ps(a, b, c); }
static inline VEC vec_max(VEC a, VEC b) { return _mm256_max_ps(a, b); }
static inline int vec_any_above(VEC x, VEC limit) { return _mm256_movemask_ps(_mm256_cmp_ps(x, limit, _CMP_GT_OQ)) != 0; }

static inline float vec_highest(VEC x)
{
    __m128 a = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)));
}

static inline float vec_sum(VEC x)
{
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}

/* 2^x: x = n + f with |f| <= 1/2, then the degree-5 polynomial of least relative error (7.5e-8), its exponent raised by n.
 * Below 2^-126 it stays there. The constant comes first in max so that a NaN is kept. */
static inline VEC vec_exp2(VEC x)
{
    x = vec_max(vec_set1(-126.0f), x);
    VEC n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm256_sub_ps(x, n);
    VEC y = vec_fma(vec_set1(0.0013276471979478776f), f, vec_set1(0.00967554133421605f));
    y = vec_fma(y, f, vec_set1(0.05550713273542586f));
    y = vec_fma(y, f, vec_set1(0.24022119723848476f));
    y = vec_fma(y, f, vec_set1(0.6931469670647331f));
    y = vec_fma(y, f, vec_set1(1.0f));
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}

/* x in the lanes i with lo <= first + i < hi, `other` elsewhere. */
static inline VEC vec_inside(VEC x, VEC other, int first, int lo, int hi)
{
    __m256i at = _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    __m256i out = _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(lo), at), _mm256_cmpgt_epi32(at, _mm256_set1_epi32(hi - 1)));
    return _mm256_blendv_ps(x, other, _mm256_castsi256_ps(out));
}

#include "attention_products.inc"
#include "attention_forward.inc"
#include "attention_backward.inc"

const struct attention_kernels attention_avx2 = {tiles_fwd, tiles_bwd, tiles_fwd_scratch, tiles_bwd_scratch};
#endif
