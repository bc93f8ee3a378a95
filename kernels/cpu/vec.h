/* A vector of floats, as wide as the instruction set this file is compiled for: 16 (AVX-512), 8 (AVX2 with FMA) or 1 (plain
 * C, the specification). The loops of loops_*.inc are written once over these few functions and compiled three times.
 * vf_load_n / vf_store_n touch the first n lanes only (0 <= n <= VW; other lanes read as 0).
 * vf_exp: Cephes-style range reduction x = n ln2 + r and a degree-6 polynomial, error below 2 ulp; NaN stays NaN. */
#ifndef GQAKIT_KERNELS_CPU_VEC_H
#define GQAKIT_KERNELS_CPU_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Before a loop over an array of vectors whose count is a constant: unrolled, so that the array lives in registers. */
#define UNROLL _Pragma("GCC unroll 16")
#define VEC_INLINE static inline __attribute__((always_inline, unused))

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
/* exp on [-ln2/2, ln2/2], Chebyshev nodes; relative error 3e-9 before rounding. */
#define VEC_EXP_COEFFS 1.394110843e-3f, 8.375126398e-3f, 4.16663529e-2f, 0.1666641551f, 0.5f, 1.0f, 1.0f
#endif

#if defined(__AVX512F__)

#define VW 16
typedef __m512 vf;
VEC_INLINE vf vf_set(float x) { return _mm512_set1_ps(x); }
VEC_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
VEC_INLINE void vf_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
VEC_INLINE __mmask16 vf_mask(int64_t n) { return (__mmask16)((1u << n) - 1u); }
VEC_INLINE vf vf_load_n(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(vf_mask(n), p); }
VEC_INLINE void vf_store_n(float *p, vf x, int64_t n) { _mm512_mask_storeu_ps(p, vf_mask(n), x); }
VEC_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
VEC_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
VEC_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
VEC_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
VEC_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
VEC_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
VEC_INLINE vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
VEC_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }  /* a b + c */
VEC_INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); } /* c - a b */
VEC_INLINE vf vf_if_negative(vf x, vf yes, vf no) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), no, yes); }
VEC_INLINE float vf_hsum(vf a) { return _mm512_reduce_add_ps(a); }
VEC_INLINE float vf_hmax(vf a) { return _mm512_reduce_max_ps(a); }
VEC_INLINE vf vf_from_bf16(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
VEC_INLINE vf vf_load_bf16(const uint16_t *p) { return vf_from_bf16(_mm256_loadu_si256((const __m256i *)p)); }
VEC_INLINE vf vf_load_bf16_n(const uint16_t *p, int64_t n) { return vf_from_bf16(_mm256_maskz_loadu_epi16(vf_mask(n), p)); }
/* VW pairs of bf16: the first, the second of each pair. */
VEC_INLINE void vf_load_pairs(const uint16_t *p, vf *first, vf *second)
{
    __m512i x = _mm512_loadu_si512(p);
    *first = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    *second = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0xffff0000)));
}
VEC_INLINE __m256 vf_fold(vf a)
{
    return _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
}
VEC_INLINE void vf_hsum4(vf a, vf b, vf c, vf d, float out[4])
{
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(vf_fold(a), vf_fold(b)), _mm256_hadd_ps(vf_fold(c), vf_fold(d)));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}
VEC_INLINE vf vf_exp(vf x)
{
    static const float c[] = {VEC_EXP_COEFFS};
    x = vf_min(vf_set(89.0f), vf_max(vf_set(-104.0f), x)); /* operand order keeps NaN */
    vf n = _mm512_roundscale_ps(vf_mul(x, vf_set(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vf r = vf_fnma(n, vf_set(-2.12194440e-4f), vf_fnma(n, vf_set(0.693359375f), x));
    vf y = vf_set(c[0]);
    for (int i = 1; i < 7; i++)
        y = vf_fma(y, r, vf_set(c[i]));
    return _mm512_scalef_ps(y, n);
}

#elif defined(__AVX2__)

#define VW 8
typedef __m256 vf;
VEC_INLINE vf vf_set(float x) { return _mm256_set1_ps(x); }
VEC_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
VEC_INLINE void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
VEC_INLINE __m256i vf_mask(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
VEC_INLINE vf vf_load_n(const float *p, int64_t n) { return _mm256_maskload_ps(p, vf_mask(n)); }
VEC_INLINE void vf_store_n(float *p, vf x, int64_t n) { _mm256_maskstore_ps(p, vf_mask(n), x); }
VEC_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
VEC_INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
VEC_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
VEC_INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
VEC_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
VEC_INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
VEC_INLINE vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
VEC_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
VEC_INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
VEC_INLINE vf vf_if_negative(vf x, vf yes, vf no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ)); }
VEC_INLINE float vf_hsum(vf a)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
VEC_INLINE float vf_hmax(vf a)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
VEC_INLINE vf vf_from_bf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
VEC_INLINE vf vf_load_bf16(const uint16_t *p) { return vf_from_bf16(_mm_loadu_si128((const __m128i *)p)); }
VEC_INLINE vf vf_load_bf16_n(const uint16_t *p, int64_t n)
{
    uint16_t lanes[8] = {0};
    memcpy(lanes, p, (size_t)n * 2);
    return vf_load_bf16(lanes);
}
VEC_INLINE void vf_load_pairs(const uint16_t *p, vf *first, vf *second)
{
    __m256i x = _mm256_loadu_si256((const __m256i *)p);
    *first = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
    *second = _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int)0xffff0000)));
}
VEC_INLINE void vf_hsum4(vf a, vf b, vf c, vf d, float out[4])
{
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}
VEC_INLINE vf vf_exp(vf x)
{
    static const float c[] = {VEC_EXP_COEFFS};
    vf tiny = vf_add(x, vf_set(87.3f)); /* negative where the result would be denormal: 0 there */
    x = vf_min(vf_set(88.8f), vf_max(vf_set(-87.4f), x));
    vf n = _mm256_round_ps(vf_mul(x, vf_set(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vf r = vf_fnma(n, vf_set(-2.12194440e-4f), vf_fnma(n, vf_set(0.693359375f), x));
    vf y = vf_set(c[0]);
    for (int i = 1; i < 7; i++)
        y = vf_fma(y, r, vf_set(c[i]));
    __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return vf_if_negative(tiny, _mm256_setzero_ps(), vf_mul(y, _mm256_castsi256_ps(bits)));
}

#else

#define VW 1
typedef float vf;
VEC_INLINE vf vf_set(float x) { return x; }
VEC_INLINE vf vf_load(const float *p) { return *p; }
VEC_INLINE void vf_store(float *p, vf x) { *p = x; }
VEC_INLINE vf vf_load_n(const float *p, int64_t n) { return n > 0 ? *p : 0.0f; }
VEC_INLINE void vf_store_n(float *p, vf x, int64_t n)
{
    if (n > 0)
        *p = x;
}
VEC_INLINE vf vf_add(vf a, vf b) { return a + b; }
VEC_INLINE vf vf_sub(vf a, vf b) { return a - b; }
VEC_INLINE vf vf_mul(vf a, vf b) { return a * b; }
VEC_INLINE vf vf_div(vf a, vf b) { return a / b; }
VEC_INLINE vf vf_max(vf a, vf b) { return a > b ? a : b; } /* b when either is NaN, as on x86 */
VEC_INLINE vf vf_min(vf a, vf b) { return a < b ? a : b; }
VEC_INLINE vf vf_sqrt(vf a) { return sqrtf(a); }
VEC_INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
VEC_INLINE vf vf_fnma(vf a, vf b, vf c) { return c - a * b; }
VEC_INLINE vf vf_if_negative(vf x, vf yes, vf no) { return x < 0 ? yes : no; }
VEC_INLINE float vf_hsum(vf a) { return a; }
VEC_INLINE float vf_hmax(vf a) { return a; }
VEC_INLINE vf vf_from_bf16(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
VEC_INLINE vf vf_load_bf16(const uint16_t *p) { return vf_from_bf16(*p); }
VEC_INLINE vf vf_load_bf16_n(const uint16_t *p, int64_t n) { return n > 0 ? vf_from_bf16(*p) : 0.0f; }
VEC_INLINE void vf_load_pairs(const uint16_t *p, vf *first, vf *second)
{
    *first = vf_from_bf16(p[0]);
    *second = vf_from_bf16(p[1]);
}
VEC_INLINE void vf_hsum4(vf a, vf b, vf c, vf d, float out[4])
{
    out[0] = a;
    out[1] = b;
    out[2] = c;
    out[3] = d;
}
VEC_INLINE vf vf_exp(vf x) { return expf(x); }

#endif

/* Lanes of a row of n elements that are left at i, at most VW. */
VEC_INLINE int64_t vec_left(int64_t n, int64_t i) { return n - i < VW ? n - i : VW; }

#endif
