/* Philox4x32-10. Counter words: index low, index high, step low, stream low; key: the seed. The high halves of step and
 * stream (zero in practice but for init streams) are folded into the key, so that all 256 bits of the arguments count
 * and the published known answers hold when those halves are zero. */
#include "base/random.h"

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/hash.h"

struct random_u32x4 random_philox(uint64_t seed, uint64_t stream, uint64_t step, uint64_t index)
{
    uint64_t key = seed ^ ((stream >> 32) * 0x9e3779b97f4a7c15u) ^ ((step >> 32) * 0xc2b2ae3d27d4eb4fu);
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32), c2 = (uint32_t)step, c3 = (uint32_t)stream;
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)c0 * 0xd2511f53u, p1 = (uint64_t)c2 * 0xcd9e8d57u;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    struct random_u32x4 r = {{c0, c1, c2, c3}};
    return r;
}

uint64_t random_stream_of(const char *tensor_name)
{
    return (uint64_t)STREAM_INIT + (uint32_t)hash64(tensor_name, strlen(tensor_name));
}

double random_uniform(uint64_t seed, uint64_t stream, uint64_t step, uint64_t index)
{
    struct random_u32x4 r = random_philox(seed, stream, step, index);
    uint64_t wide = (uint64_t)r.v[0] << 32 | r.v[1];
    return (double)(wide >> 11) * 0x1p-53;
}

/* Four normals from the four words of one block: words 0,1 and 2,3 are the pairs of Box and Muller. */
static void normal_block(double out[4], uint64_t seed, uint64_t stream, uint64_t step, uint64_t block)
{
    struct random_u32x4 r = random_philox(seed, stream, step, block);
    for (int pair = 0; pair < 2; pair++) {
        double u = ((double)r.v[2 * pair] + 1.0) * 0x1p-32; /* (0, 1] */
        double angle = (double)r.v[2 * pair + 1] * (0x1p-32 * 6.283185307179586476925286766559);
        double radius = sqrt(-2.0 * log(u));
        out[2 * pair] = radius * cos(angle);
        out[2 * pair + 1] = radius * sin(angle);
    }
}

void random_normal_f32(float *dst, int64_t n, int64_t first, float sd, uint64_t seed, uint64_t stream, uint64_t step)
{
    CHECK(first >= 0);
    double four[4];
    for (int64_t i = 0; i < n; i++) {
        int64_t at = first + i;
        if (i == 0 || at % 4 == 0)
            normal_block(four, seed, stream, step, (uint64_t)at / 4);
        dst[i] = (float)(four[at % 4] * (double)sd);
    }
}

/* Eight Feistel rounds over 2w bits, the smallest even width whose domain holds n; images outside [0, n) are walked on
 * (the domain is under 4n, so under four steps on average). */
int64_t random_permute(uint64_t seed, uint64_t epoch, int64_t n, int64_t i)
{
    CHECK(n > 0 && i >= 0 && i < n);
    int w = 1;
    while (w < 31 && (int64_t)1 << (2 * w) < n)
        w++;
    if ((int64_t)1 << (2 * w) < n)
        w = 32;
    uint64_t mask = ((uint64_t)1 << w) - 1, x = (uint64_t)i;
    do {
        uint64_t left = x >> w, right = x & mask;
        for (uint64_t round = 0; round < 8; round++) {
            struct random_u32x4 r = random_philox(seed, STREAM_SHUFFLE, epoch, round << 32 | right);
            uint64_t next = left ^ (r.v[0] & mask);
            left = right;
            right = next;
        }
        x = left << w | right;
    } while (x >= (uint64_t)n);
    return (int64_t)x;
}
