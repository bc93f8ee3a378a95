/* Private to the files of kernels/cuda that talk to the CUDA runtime itself (device.cu, staging.cu, graph.cu, matmul.cu, probe.cu);
 * kernels and their host parts know struct device alone. None of these files is built for the executor. */
#ifndef GQAKIT_KERNELS_CUDA_DEVICE_CUH
#define GQAKIT_KERNELS_CUDA_DEVICE_CUH

#include "cuda.cuh"

/* Least compute capability, and the one whose wgmma kernels run: code for sm_90a runs on 9.0 and on nothing newer. */
#define CUDA_LEAST_CAPABILITY 80
#define CUDA_WGMMA_CAPABILITY 90

/* Pinned memory through which copies to the device go: a ring of bytes. Each copy is a memcpy into the ring, an asynchronous
 * copy from there, and an event that says when those bytes may be used again. The host waits only when the ring, or the list
 * of pieces, is full. Small enough to be allocated at every start, large enough for many steps of token ids. */
#define STAGING_BYTES ((size_t)32 << 20)
#define STAGING_PIECE ((size_t)4 << 20) /* larger copies go in pieces, so that memcpy and transfer overlap */
#define STAGING_PIECES 64

struct staging {
    char *ring;
    size_t next;                 /* where the next piece goes */
    int first, count;            /* pieces in flight: a queue in `piece` */
    struct { size_t from, to; cudaEvent_t done; } piece[STAGING_PIECES];
};

struct device_private {
    cudaStream_t stream;
    int recording;               /* between graph_begin and graph_end: only operations, no copies from or to the host */
    struct staging staging;
    struct matmul_state *matmul; /* matmul.cu: the library's handle and what it chose for each shape; NULL until first used */
};

namespace CUDA_NS {

/* OK, ERR_MEMORY for cudaErrorMemoryAllocation, ERR_DEVICE for the rest: "WHAT: the CUDA runtime says ...". Clears the error. */
enum code cuda_result(const char *what, cudaError_t error) MUST_USE;

enum code staging_open(struct staging *s) MUST_USE;
void staging_close(struct staging *s);
/* Returns when src may be changed; the copy itself is ordered on the stream. */
enum code staging_copy(struct staging *s, cudaStream_t stream, void *dst, const void *src, size_t bytes) MUST_USE;

void matmul_close(struct device *dev);

} // namespace CUDA_NS
#endif
