/* The conversion loops that exist once per instruction set; private to base. Contiguous, no overlap, any n. */
#ifndef GQAKIT_BASE_VIEW_CONVERT_H
#define GQAKIT_BASE_VIEW_CONVERT_H

#include <stddef.h>
#include <stdint.h>

struct convert_loops {
    void (*f32_from_bf16)(float *dst, const uint16_t *src, size_t n);
    void (*bf16_from_f32)(uint16_t *dst, const float *src, size_t n);
    void (*f32_from_f16)(float *dst, const uint16_t *src, size_t n);
    void (*f16_from_f32)(uint16_t *dst, const float *src, size_t n);
    size_t (*nonfinite_32)(const uint32_t *src, size_t n);                /* exponent bits all ones, f32 */
    size_t (*nonfinite_16)(const uint16_t *src, size_t n, uint16_t mask); /* (x & mask) == mask */
};

extern const struct convert_loops convert_plain;
#ifndef GQAKIT_NO_SIMD
extern const struct convert_loops convert_avx2;
#endif

#endif
