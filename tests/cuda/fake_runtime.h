/* Shared by the two files of the fake runtime. */
#ifndef GQAKIT_TESTS_FAKE_RUNTIME_H
#define GQAKIT_TESTS_FAKE_RUNTIME_H

#include <cuda_runtime_api.h>

#define FAKE_SMEM_MAX (227 * 1024) /* per block, compute capability 9.0 */

cudaError_t fake_error(cudaError_t e); /* remembers it for cudaGetLastError */
cudaStream_t fake_stream(void);

#endif
