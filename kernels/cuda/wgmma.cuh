/* wgmma.mma_async.sync.aligned.m64nNk16.f32.bf16.bf16 (PTX ISA 9.0, "Asynchronous Warpgroup Level Matrix Instructions"; sm_90a).
 * A warpgroup (4 warps, the first a multiple of 4) computes d [64,N] (+)= a [64,16] b [16,N]. Warp w of the four, lane 4g + t:
 *   d[4j + i]   row 16w + g + 8 (i >> 1), column 8j + 2t + (i & 1); N / 2 registers per thread
 *   a in registers: the m16n8k16 fragment of mma_bf16, rows 16w ..
 * b (and a of wgmma_ss) lie in shared memory under a descriptor (ptx.cuh). TB: 0 = b is [N,16] K-major, 1 = b is [16,N] MN-major.
 * TA the same for a. add = 0: d is overwritten. N of the list at the end.
 * Order: write registers d or a, wgmma_fence(), products, wgmma_commit(), wgmma_wait<n>(), read d. Between commit and wait no thread
 * touches d or a, or ptxas serialises the products (C7511). */
#ifndef GQAKIT_KERNELS_CUDA_WGMMA_CUH
#define GQAKIT_KERNELS_CUDA_WGMMA_CUH

#include "ptx.cuh"

#ifndef GQAKIT_SIMT
namespace CUDA_NS {

PTX void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
PTX void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> PTX void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

/* Eight accumulators of the operand list, and eight operands. */
#define WGMMA_L0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WGMMA_L1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_L2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define WGMMA_L3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_L4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define WGMMA_L5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_L6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define WGMMA_L7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_L8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define WGMMA_L9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_L10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define WGMMA_L11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_L12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define WGMMA_L13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_L14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define WGMMA_L15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_D(i) \
    "+f"(d[8 * i]), "+f"(d[8 * i + 1]), "+f"(d[8 * i + 2]), "+f"(d[8 * i + 3]), "+f"(d[8 * i + 4]), "+f"(d[8 * i + 5]), "+f"(d[8 * i + 6]), \
        "+f"(d[8 * i + 7])

template <int N, int TA, int TB> struct wgmma_product;

/* o0 ..: the operand numbers that follow the N / 2 accumulators. */
#define WGMMA_SHAPE(N, LIST, OPERANDS, o0, o1, o2, o3, o4, o5, o6)                                                                       \
    template <int TA, int TB> struct wgmma_product<N, TA, TB> {                                                                          \
        static PTX void ss(float (&d)[N / 2], uint64_t a, uint64_t b, int add)                                                           \
        {                                                                                                                                \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o2 ", 0;\n"                                                              \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" LIST "}, %" #o0 ", %" #o1 ", p, 1, 1, %" #o3       \
                         ", %" #o4 ";\n}"                                                                                                \
                         : WGMMA_UNPACK OPERANDS                                                                                                      \
                         : "l"(a), "l"(b), "r"(add), "n"(TA), "n"(TB));                                                                  \
        }                                                                                                                                \
        static PTX void rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int add)                                               \
        {                                                                                                                                \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o5 ", 0;\n"                                                              \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" LIST "}, {%" #o0 ", %" #o1 ", %" #o2 ", %" #o3     \
                         "}, %" #o4 ", p, 1, 1, %" #o6 ";\n}"                                                                            \
                         : WGMMA_UNPACK OPERANDS                                                                                                      \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TB));                                       \
        }                                                                                                                                \
    };

#define WGMMA_PACK(...) (__VA_ARGS__)
#define WGMMA_UNPACK(...) __VA_ARGS__
#define WGMMA_LIST16 WGMMA_L0
#define WGMMA_OPS16 WGMMA_D(0)
#define WGMMA_LIST32 WGMMA_LIST16 ", " WGMMA_L1
#define WGMMA_OPS32 WGMMA_OPS16, WGMMA_D(1)
#define WGMMA_LIST48 WGMMA_LIST32 ", " WGMMA_L2
#define WGMMA_OPS48 WGMMA_OPS32, WGMMA_D(2)
#define WGMMA_LIST64 WGMMA_LIST48 ", " WGMMA_L3
#define WGMMA_OPS64 WGMMA_OPS48, WGMMA_D(3)
#define WGMMA_LIST80 WGMMA_LIST64 ", " WGMMA_L4
#define WGMMA_OPS80 WGMMA_OPS64, WGMMA_D(4)
#define WGMMA_LIST96 WGMMA_LIST80 ", " WGMMA_L5
#define WGMMA_OPS96 WGMMA_OPS80, WGMMA_D(5)
#define WGMMA_LIST112 WGMMA_LIST96 ", " WGMMA_L6
#define WGMMA_OPS112 WGMMA_OPS96, WGMMA_D(6)
#define WGMMA_LIST128 WGMMA_LIST112 ", " WGMMA_L7
#define WGMMA_OPS128 WGMMA_OPS112, WGMMA_D(7)
#define WGMMA_LIST144 WGMMA_LIST128 ", " WGMMA_L8
#define WGMMA_OPS144 WGMMA_OPS128, WGMMA_D(8)
#define WGMMA_LIST160 WGMMA_LIST144 ", " WGMMA_L9
#define WGMMA_OPS160 WGMMA_OPS144, WGMMA_D(9)
#define WGMMA_LIST176 WGMMA_LIST160 ", " WGMMA_L10
#define WGMMA_OPS176 WGMMA_OPS160, WGMMA_D(10)
#define WGMMA_LIST192 WGMMA_LIST176 ", " WGMMA_L11
#define WGMMA_OPS192 WGMMA_OPS176, WGMMA_D(11)
#define WGMMA_LIST256 WGMMA_LIST192 ", " WGMMA_L12 ", " WGMMA_L13 ", " WGMMA_L14 ", " WGMMA_L15
#define WGMMA_OPS256 WGMMA_OPS192, WGMMA_D(12), WGMMA_D(13), WGMMA_D(14), WGMMA_D(15)
WGMMA_SHAPE(16, WGMMA_LIST16, WGMMA_PACK(WGMMA_OPS16), 8, 9, 10, 11, 12, 13, 14)
WGMMA_SHAPE(32, WGMMA_LIST32, WGMMA_PACK(WGMMA_OPS32), 16, 17, 18, 19, 20, 21, 22)
WGMMA_SHAPE(48, WGMMA_LIST48, WGMMA_PACK(WGMMA_OPS48), 24, 25, 26, 27, 28, 29, 30)
WGMMA_SHAPE(64, WGMMA_LIST64, WGMMA_PACK(WGMMA_OPS64), 32, 33, 34, 35, 36, 37, 38)
WGMMA_SHAPE(80, WGMMA_LIST80, WGMMA_PACK(WGMMA_OPS80), 40, 41, 42, 43, 44, 45, 46)
WGMMA_SHAPE(96, WGMMA_LIST96, WGMMA_PACK(WGMMA_OPS96), 48, 49, 50, 51, 52, 53, 54)
WGMMA_SHAPE(112, WGMMA_LIST112, WGMMA_PACK(WGMMA_OPS112), 56, 57, 58, 59, 60, 61, 62)
WGMMA_SHAPE(128, WGMMA_LIST128, WGMMA_PACK(WGMMA_OPS128), 64, 65, 66, 67, 68, 69, 70)
WGMMA_SHAPE(144, WGMMA_LIST144, WGMMA_PACK(WGMMA_OPS144), 72, 73, 74, 75, 76, 77, 78)
WGMMA_SHAPE(160, WGMMA_LIST160, WGMMA_PACK(WGMMA_OPS160), 80, 81, 82, 83, 84, 85, 86)
WGMMA_SHAPE(176, WGMMA_LIST176, WGMMA_PACK(WGMMA_OPS176), 88, 89, 90, 91, 92, 93, 94)
WGMMA_SHAPE(192, WGMMA_LIST192, WGMMA_PACK(WGMMA_OPS192), 96, 97, 98, 99, 100, 101, 102)
WGMMA_SHAPE(256, WGMMA_LIST256, WGMMA_PACK(WGMMA_OPS256), 128, 129, 130, 131, 132, 133, 134)

/* After wgmma_wait: keeps the compiler from reading d before the wait, which names no registers. */
template <int N> PTX void wgmma_keep(float (&d)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}
/* a from shared memory. */
template <int N, int TA, int TB> __device__ __forceinline__ void wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, int add)
{
    wgmma_product<N, TA, TB>::ss(d, a, b, add);
}
/* a from registers. */
template <int N, int TB> __device__ __forceinline__ void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int add)
{
    wgmma_product<N, 0, TB>::rs(d, a, b, add);
}
} // namespace CUDA_NS
#endif /* the executor's are in simt_sm90.h */
#endif
