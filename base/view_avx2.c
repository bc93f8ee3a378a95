/* AVX2 and F16C form of the loops in view_convert.c; bit for bit the same results. Tails use the plain loops. */
#include <immintrin.h>

#include "base/view_convert.h"

static void avx2_f32_from_bf16(float *dst, const uint16_t *src, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(src + i)));
        _mm256_storeu_si256((__m256i *)(dst + i), _mm256_slli_epi32(x, 16));
    }
    convert_plain.f32_from_bf16(dst + i, src + i, n - i);
}

static inline __m256i round_bf16(const float *src)
{
    const __m256i bias = _mm256_set1_epi32(0x7fff), one = _mm256_set1_epi32(1), quiet = _mm256_set1_epi32(0x40);
    __m256 f = _mm256_loadu_ps(src);
    __m256i u = _mm256_castps_si256(f), top = _mm256_srli_epi32(u, 16);
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(bias, _mm256_and_si256(top, one))), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(f, f, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(r, _mm256_or_si256(top, quiet), nan);
}

static void avx2_bf16_from_f32(uint16_t *dst, const float *src, size_t n)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256i both = _mm256_packus_epi32(round_bf16(src + i), round_bf16(src + i + 8)); /* lanes 0 2 1 3 */
        _mm256_storeu_si256((__m256i *)(dst + i), _mm256_permute4x64_epi64(both, 0xd8));
    }
    convert_plain.bf16_from_f32(dst + i, src + i, n - i);
}

static void avx2_f32_from_f16(float *dst, const uint16_t *src, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(src + i))));
    convert_plain.f32_from_f16(dst + i, src + i, n - i);
}

static void avx2_f16_from_f32(uint16_t *dst, const float *src, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(dst + i), _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
    convert_plain.f16_from_f32(dst + i, src + i, n - i);
}

/* A compare leaves -1 where it holds; sums of those stay below 2^31 within a block. */
static size_t avx2_nonfinite_32(const uint32_t *src, size_t n)
{
    const __m256i mask = _mm256_set1_epi32(0x7f800000);
    size_t i = 0, count = 0;
    while (i + 8 <= n) {
        size_t end = n - i > (size_t)1 << 30 ? i + ((size_t)1 << 30) : n;
        __m256i sum = _mm256_setzero_si256();
        for (; i + 8 <= end; i += 8) {
            __m256i x = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(src + i)), mask);
            sum = _mm256_sub_epi32(sum, _mm256_cmpeq_epi32(x, mask));
        }
        uint32_t part[8];
        _mm256_storeu_si256((__m256i *)part, sum);
        for (int j = 0; j < 8; j++)
            count += part[j];
    }
    return count + convert_plain.nonfinite_32(src + i, n - i);
}

static size_t avx2_nonfinite_16(const uint16_t *src, size_t n, uint16_t mask16)
{
    const __m256i mask = _mm256_set1_epi16((short)mask16);
    size_t i = 0, count = 0;
    while (i + 16 <= n) {
        size_t end = n - i > 16 * 65535 ? i + 16 * 65535 : n; /* 16-bit counters */
        __m256i sum = _mm256_setzero_si256();
        for (; i + 16 <= end; i += 16) {
            __m256i x = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(src + i)), mask);
            sum = _mm256_sub_epi16(sum, _mm256_cmpeq_epi16(x, mask));
        }
        uint16_t part[16];
        _mm256_storeu_si256((__m256i *)part, sum);
        for (int j = 0; j < 16; j++)
            count += part[j];
    }
    return count + convert_plain.nonfinite_16(src + i, n - i, mask16);
}

const struct convert_loops convert_avx2 = {avx2_f32_from_bf16, avx2_bf16_from_f32, avx2_f32_from_f16,
                                           avx2_f16_from_f32,  avx2_nonfinite_32, avx2_nonfinite_16};
