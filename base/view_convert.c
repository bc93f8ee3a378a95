/* Conversions between f32, bf16, f16 and f64, all to nearest even.
 *
 * bf16 is the upper half of an f32: add 0x7fff plus the lowest kept bit, then cut.
 * f16 (1 sign, 5 exponent with bias 15, 10 fraction bits): results of at least 2^-14 are rebased by 112 in the exponent
 * and rounded the same way, 13 bits down; smaller ones are counted in units of 2^-24, which is what adding 0.5f does to
 * an f32 (its last place is worth 2^-24 there). A NaN keeps the fraction bits that fit and becomes quiet. An f64 goes
 * through an f32 rounded to odd, so that the second rounding sees what the first one dropped. */
#include "base/view_convert.h"

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/host.h"
#include "base/view.h"

static inline uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static inline float float_of(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static inline uint16_t to_bf16(float x)
{
    uint32_t u = bits_of(x);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, nan = (u >> 16) | 0x40u;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

static inline uint16_t to_f16(float x)
{
    uint32_t u = bits_of(x), a = u & 0x7fffffffu;
    uint32_t capped = a < 0x47800000u ? a : 0x47800000u; /* 2^16 and above become infinity */
    uint32_t normal = (capped - 0x38000000u + 0xfffu + ((capped >> 13) & 1u)) >> 13;
    uint32_t small = bits_of(float_of(a < 0x38800000u ? a : 0u) + 0.5f) - 0x3f000000u;
    uint32_t nan = 0x7e00u | ((a >> 13) & 0x3ffu);
    uint32_t r = a < 0x38800000u ? small : normal;
    r = a > 0x7f800000u ? nan : r;
    return (uint16_t)(r | ((u >> 16) & 0x8000u));
}

static inline float from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, a = h & 0x7fffu;
    uint32_t normal = (a << 13) + 0x38000000u;
    uint32_t special = 0x7f800000u | (a << 13) | (a > 0x7c00u ? 0x400000u : 0u);
    float small = (float)(int32_t)a * 0x1p-24f; /* exact */
    uint32_t r = a < 0x400u ? bits_of(small) : a >= 0x7c00u ? special : normal;
    return float_of(r | sign);
}

static inline float odd_f32(double d)
{
    float f = (float)d;
    double back = (double)f;
    if (back == d || d != d)
        return f;
    uint32_t u = bits_of(f);
    return float_of((fabs(back) > fabs(d) ? u - 1u : u) | 1u);
}

uint16_t bf16_from_f32(float x) { return to_bf16(x); }
float f32_from_bf16(uint16_t x) { return float_of((uint32_t)x << 16); }
uint16_t f16_from_f32(float x) { return to_f16(x); }
float f32_from_f16(uint16_t x) { return from_f16(x); }

static void plain_f32_from_bf16(float *dst, const uint16_t *src, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = float_of((uint32_t)src[i] << 16);
}

static void plain_bf16_from_f32(uint16_t *dst, const float *src, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = to_bf16(src[i]);
}

static void plain_f32_from_f16(float *dst, const uint16_t *src, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = from_f16(src[i]);
}

static void plain_f16_from_f32(uint16_t *dst, const float *src, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = to_f16(src[i]);
}

static size_t plain_nonfinite_32(const uint32_t *src, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += (src[i] & 0x7f800000u) == 0x7f800000u;
    return count;
}

static size_t plain_nonfinite_16(const uint16_t *src, size_t n, uint16_t mask)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += (src[i] & mask) == mask;
    return count;
}

const struct convert_loops convert_plain = {plain_f32_from_bf16, plain_bf16_from_f32,  plain_f32_from_f16,
                                            plain_f16_from_f32,  plain_nonfinite_32, plain_nonfinite_16};

static const struct convert_loops *loops(void)
{
#ifndef GQAKIT_NO_SIMD
    if (host_isa() >= ISA_AVX2)
        return &convert_avx2;
#endif
    return &convert_plain;
}

static int is_float(enum dtype t)
{
    return t == DT_F32 || t == DT_BF16 || t == DT_F16 || t == DT_F64;
}

/* Everything but f32 on one side: to f32 (for f64: to odd when a narrower type follows). */
static void to_f32(float *dst, const char *src, enum dtype t, enum dtype next, size_t n)
{
    if (t == DT_BF16)
        loops()->f32_from_bf16(dst, (const uint16_t *)(const void *)src, n);
    else if (t == DT_F16)
        loops()->f32_from_f16(dst, (const uint16_t *)(const void *)src, n);
    else if (t == DT_F32)
        memcpy(dst, src, n * 4);
    else
        for (size_t i = 0; i < n; i++) {
            double d = ((const double *)(const void *)src)[i];
            dst[i] = next == DT_F32 ? (float)d : odd_f32(d);
        }
}

static void from_f32(char *dst, enum dtype t, const float *src, size_t n)
{
    if (t == DT_BF16)
        loops()->bf16_from_f32((uint16_t *)(void *)dst, src, n);
    else if (t == DT_F16)
        loops()->f16_from_f32((uint16_t *)(void *)dst, src, n);
    else if (t == DT_F32)
        memcpy(dst, src, n * 4);
    else
        for (size_t i = 0; i < n; i++)
            ((double *)(void *)dst)[i] = (double)src[i];
}

void convert_elements(void *dst, enum dtype dst_type, const void *src, enum dtype src_type, size_t n)
{
    if (n == 0)
        return;
    if (dst_type == src_type) {
        memmove(dst, src, n * dtype_bytes(src_type));
        return;
    }
    CHECK(is_float(dst_type) && is_float(src_type));
    if (dst_type == DT_F32)
        to_f32(dst, src, src_type, DT_F32, n);
    else if (src_type == DT_F32)
        from_f32(dst, dst_type, src, n);
    else {
        enum { CHUNK = 1024 };
        float between[CHUNK];
        for (size_t i = 0; i < n; i += CHUNK) {
            size_t m = n - i < CHUNK ? n - i : CHUNK;
            to_f32(between, (const char *)src + i * dtype_bytes(src_type), src_type, dst_type, m);
            from_f32((char *)dst + i * dtype_bytes(dst_type), dst_type, between, m);
        }
    }
}

size_t count_nonfinite(const void *src, enum dtype t, size_t n)
{
    CHECK(is_float(t));
    if (t == DT_F32)
        return loops()->nonfinite_32(src, n);
    if (t == DT_BF16)
        return loops()->nonfinite_16(src, n, 0x7f80u);
    if (t == DT_F16)
        return loops()->nonfinite_16(src, n, 0x7c00u);
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += isfinite(((const double *)src)[i]) ? 0u : 1u;
    return count;
}
