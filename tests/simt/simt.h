/* What kernels/cuda/launch.cuh includes instead of the CUDA headers when g++ compiles a kernel source for the executor
 * (-DGQAKIT_SIMT): the words of CUDA C++ that the kernels use. Everything that touches the executor is a function defined elsewhere,
 * because this text is compiled with instrumentation. Values of thread registers are as on a GPU; the approximate functions
 * (__expf, exp2 ...) are the exact ones here.
 * Only __syncwarp and barriers order memory; shuffles and votes do not, as the CUDA documentation has it. */
#ifndef GQAKIT_TESTS_SIMT_SIMT_H
#define GQAKIT_TESTS_SIMT_SIMT_H

#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

/* ---- vectors ---- */
#define SIMT_VECTOR2(T, name, alignment)                                   \
    struct __align__(alignment) name { T x, y; };                          \
    static inline name make_##name(T x, T y) { name v = {x, y}; return v; }
#define SIMT_VECTOR4(T, name, alignment)                                   \
    struct __align__(alignment) name { T x, y, z, w; };                    \
    static inline name make_##name(T x, T y, T z, T w) { name v = {x, y, z, w}; return v; }
SIMT_VECTOR2(float, float2, 8)
SIMT_VECTOR2(int, int2, 8)
SIMT_VECTOR2(unsigned, uint2, 8)
SIMT_VECTOR2(double, double2, 16)
SIMT_VECTOR4(float, float4, 16)
SIMT_VECTOR4(int, int4, 16)
SIMT_VECTOR4(unsigned, uint4, 16)
struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

/* ---- the executor (execute.cpp, collectives.cpp) ---- */
#define SIMT_LINE const char *file = __builtin_FILE(), int line = __builtin_LINE()
uint3 simt_thread_index() __attribute__((const)); /* a fiber never changes its index */
uint3 simt_block_index() __attribute__((const));
dim3 simt_block_dim() __attribute__((const));
dim3 simt_grid_dim() __attribute__((const));
void *simt_shared_memory() __attribute__((const));
#define threadIdx (simt_thread_index())
#define blockIdx (simt_block_index())
#define blockDim (simt_block_dim())
#define gridDim (simt_grid_dim())
#define warpSize 32

/* kernel runs once per thread: call(closure). */
enum code simt_launch(int arch, size_t smem_max, const char *name, dim3 grid, dim3 block, size_t smem, void (*call)(void *), void *closure,
                      size_t closure_bytes);
namespace simt {
template <class F> void call_closure(void *f) { (*(F *)f)(); }
template <class... P, class... A>
enum code launch(int arch, size_t smem_max, const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t smem, A... args)
{
    auto f = [=]() { kernel(args...); };
    return simt_launch(arch, smem_max, name, grid, block, smem, call_closure<decltype(f)>, (void *)&f, sizeof f);
}
} // namespace simt
#define LAUNCH(dev, kernel, grid, block, smem, ...) \
    simt::launch((dev)->arch, (dev)->smem_max, #kernel, kernel, grid, block, smem, __VA_ARGS__)
#define SMEM(type, name) type *name = reinterpret_cast<type *>(simt_shared_memory())

void __syncthreads(SIMT_LINE);
int __syncthreads_or(int predicate, SIMT_LINE);
int __syncthreads_and(int predicate, SIMT_LINE);
int __syncthreads_count(int predicate, SIMT_LINE);
void __syncwarp(unsigned mask = 0xffffffffu, SIMT_LINE);
unsigned __activemask();
unsigned __ballot_sync(unsigned mask, int predicate, SIMT_LINE);
static inline int __any_sync(unsigned mask, int predicate, SIMT_LINE) { return __ballot_sync(mask, predicate, file, line) != 0; }
int __all_sync(unsigned mask, int predicate, SIMT_LINE);
int simt_reduce_sync(char how, unsigned mask, int value, const char *file, int line);
static inline int __reduce_add_sync(unsigned mask, int v, SIMT_LINE) { return simt_reduce_sync('+', mask, v, file, line); }
static inline int __reduce_max_sync(unsigned mask, int v, SIMT_LINE) { return simt_reduce_sync('>', mask, v, file, line); }
static inline int __reduce_min_sync(unsigned mask, int v, SIMT_LINE) { return simt_reduce_sync('<', mask, v, file, line); }

/* how: 'i'ndex, 'x'or, 'd'own, 'u'p */
uint64_t simt_shuffle(char how, unsigned mask, uint64_t bits, int by, int width, const char *file, int line);
template <class T> static inline T simt_shuffle_of(char how, unsigned mask, T value, int by, int width, const char *file, int line)
{
    static_assert(sizeof(T) <= 8, "a shuffle moves 4 or 8 bytes");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    bits = simt_shuffle(how, mask, bits, by, width, file, line);
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T> static inline T __shfl_sync(unsigned m, T v, int from, int width = 32, SIMT_LINE) { return simt_shuffle_of('i', m, v, from, width, file, line); }
template <class T> static inline T __shfl_xor_sync(unsigned m, T v, int by, int width = 32, SIMT_LINE) { return simt_shuffle_of('x', m, v, by, width, file, line); }
template <class T> static inline T __shfl_down_sync(unsigned m, T v, unsigned by, int width = 32, SIMT_LINE) { return simt_shuffle_of('d', m, v, (int)by, width, file, line); }
template <class T> static inline T __shfl_up_sync(unsigned m, T v, unsigned by, int width = 32, SIMT_LINE) { return simt_shuffle_of('u', m, v, (int)by, width, file, line); }

int atomicAdd(int *p, int v, SIMT_LINE);
unsigned atomicAdd(unsigned *p, unsigned v, SIMT_LINE);
unsigned long long atomicAdd(unsigned long long *p, unsigned long long v, SIMT_LINE);
float atomicAdd(float *p, float v, SIMT_LINE);
double atomicAdd(double *p, double v, SIMT_LINE);
int atomicMax(int *p, int v, SIMT_LINE);
unsigned atomicMax(unsigned *p, unsigned v, SIMT_LINE);
int atomicMin(int *p, int v, SIMT_LINE);
unsigned atomicMin(unsigned *p, unsigned v, SIMT_LINE);
int atomicOr(int *p, int v, SIMT_LINE);
unsigned atomicOr(unsigned *p, unsigned v, SIMT_LINE);
int atomicExch(int *p, int v, SIMT_LINE);
unsigned atomicExch(unsigned *p, unsigned v, SIMT_LINE);
int atomicCAS(int *p, int expected, int desired, SIMT_LINE);
unsigned atomicCAS(unsigned *p, unsigned expected, unsigned desired, SIMT_LINE);
unsigned long long atomicCAS(unsigned long long *p, unsigned long long expected, unsigned long long desired, SIMT_LINE);

/* Blocks run one after the other and every access is at once visible: fences have nothing to do. */
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __threadfence_system() {}
void simt_trap(SIMT_LINE) __attribute__((noreturn));
#define __trap() simt_trap()
long long clock64();
static inline void __nanosleep(unsigned) {}

/* ---- loads ---- */
template <class T> static inline T __ldg(const T *p) { return *p; }
template <class T> static inline T __ldcs(const T *p) { return *p; }
template <class T> static inline T __ldcg(const T *p) { return *p; }
template <class T> static inline void __stcs(T *p, T v) { *p = v; }
template <class T> static inline void __stcg(T *p, T v) { *p = v; }

/* ---- bits ---- */
template <class To, class From> static inline To simt_bits(From v)
{
    static_assert(sizeof(To) == sizeof(From), "same size");
    To r;
    __builtin_memcpy(&r, &v, sizeof r);
    return r;
}
static inline unsigned __float_as_uint(float x) { return simt_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return simt_bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return simt_bits<float>(x); }
static inline float __int_as_float(int x) { return simt_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return simt_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return simt_bits<double>(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned)x); }
static inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned long long)((unsigned __int128)a * b >> 64); }
static inline unsigned __brev(unsigned x)
{
    unsigned r = 0;
    for (int i = 0; i < 32; i++)
        r |= (x >> i & 1u) << (31 - i);
    return r;
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector)
{
    uint64_t v = (uint64_t)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        unsigned s = selector >> (4 * i), byte = (unsigned)(v >> (8 * (s & 7u))) & 0xffu;
        r |= (s & 8u ? (byte & 0x80u ? 0xffu : 0u) : byte) << (8 * i);
    }
    return r;
}

/* ---- arithmetic: glibc declares some of the names with two underscores, so they are macros ---- */
#define SIMT_LEAST_MOST(T)                                   \
    static inline T min(T a, T b) { return b < a ? b : a; }  \
    static inline T max(T a, T b) { return a < b ? b : a; }
SIMT_LEAST_MOST(int)
SIMT_LEAST_MOST(unsigned)
SIMT_LEAST_MOST(long)
SIMT_LEAST_MOST(unsigned long)
SIMT_LEAST_MOST(long long)
SIMT_LEAST_MOST(unsigned long long)
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
static inline int __float2int_rn(float x) { return (int)rintf(x); }
static inline int __float2int_rz(float x) { return (int)x; }
static inline int __float2int_rd(float x) { return (int)floorf(x); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline float __double2float_rn(double x) { return (float)x; }
#define __expf(x) expf(x)
#define __exp2f(x) exp2f(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __sincosf(x, s, c) sincosf(x, s, c)
#define __tanf(x) tanf(x)

#endif
