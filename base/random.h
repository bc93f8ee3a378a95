/* Counter-based random numbers: value = f(seed, stream, step, index), no stored state. Philox4x32-10 (Salmon, Moraes,
 * Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3). Permutations by a Feistel cipher with
 * cycle walking, so that sample i of an epoch is found without a table. */
#ifndef GQAKIT_BASE_RANDOM_H
#define GQAKIT_BASE_RANDOM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum random_stream { STREAM_SHUFFLE = 1, STREAM_DROPOUT = 2, STREAM_ROUNDING = 3, STREAM_SAMPLE = 4, STREAM_TEST = 5,
                     STREAM_INIT = 1 << 16 /* + low 32 bits of the tensor name's hash, see random_stream_of */ };

struct random_u32x4 { uint32_t v[4]; };
struct random_u32x4 random_philox(uint64_t seed, uint64_t stream, uint64_t step, uint64_t index);
uint64_t random_stream_of(const char *tensor_name); /* init stream of one tensor */
double random_uniform(uint64_t seed, uint64_t stream, uint64_t step, uint64_t index); /* in [0, 1), 53 bits */
/* n standard normals (Box-Muller) times sd, element i from index i: independent of how a range is split. */
void random_normal_f32(float *dst, int64_t n, int64_t first, float sd, uint64_t seed, uint64_t stream, uint64_t step);
/* Image of i under a permutation of [0, n) chosen by (seed, epoch). 0 <= i < n. */
int64_t random_permute(uint64_t seed, uint64_t epoch, int64_t n, int64_t i);

#ifdef __cplusplus
}
#endif
#endif
