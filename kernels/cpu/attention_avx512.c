/* Attention with AVX-512: 16 lanes, 32 registers. What the shared files attention_*.inc need to know of the machine. */
#include "attention.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>

#define VEC __m512
#define LANES 16
#define BLOCK_ROWS 6 /* 6 x 4 accumulators + 4 vectors + 1 broadcast = 29 of 32 registers; 24 chains hide the FMA's 4 cycles x 2 pipes */
#define BLOCK_VECS 4

static inline VEC vec_set1(float x) { return _mm512_set1_ps(x); }
static inline VEC vec_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vec_store(float *p, VEC x) { _mm512_storeu_ps(p, x); }
static inline VEC vec_fma(VEC a, VEC b, VEC c) { return _mm512_fmadd_ps(a, b, c); }
static inline VEC vec_max(VEC a, VEC b) { return _mm512_max_ps(a, b); }
static inline int vec_any_above(VEC x, VEC limit) { return _mm512_cmp_ps_mask(x, limit, _CMP_GT_OQ) != 0; }
static inline float vec_highest(VEC x) { return _mm512_reduce_max_ps(x); }
static inline float vec_sum(VEC x) { return _mm512_reduce_add_ps(x); }

/* 2^x: x = n + f with |f| <= 1/2, then the degree-5 polynomial of least relative error (7.5e-8). Gives 0 far below. */
static inline VEC vec_exp2(VEC x)
{
    VEC n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, n);
    VEC y = vec_fma(vec_set1(0.0013276471979478776f), f, vec_set1(0.00967554133421605f));
    y = vec_fma(y, f, vec_set1(0.05550713273542586f));
    y = vec_fma(y, f, vec_set1(0.24022119723848476f));
    y = vec_fma(y, f, vec_set1(0.6931469670647331f));
    y = vec_fma(y, f, vec_set1(1.0f));
    return _mm512_scalef_ps(y, n);
}

/* x in the lanes i with lo <= first + i < hi, `other` elsewhere. */
static inline VEC vec_inside(VEC x, VEC other, int first, int lo, int hi)
{
    __m512i at = _mm512_add_epi32(_mm512_set1_epi32(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    __mmask16 in = _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(lo)) & _mm512_cmplt_epi32_mask(at, _mm512_set1_epi32(hi));
    return _mm512_mask_blend_ps(in, other, x);
}

#include "attention_products.inc"
#include "attention_forward.inc"
#include "attention_backward.inc"

const struct attention_kernels attention_avx512 = {tiles_fwd, tiles_bwd, tiles_fwd_scratch, tiles_bwd_scratch};
#endif
