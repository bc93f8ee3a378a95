/* Where sm_90a instructions find their elements: the swizzle of shared memory, wgmma's operands under a matrix descriptor, and the
 * register fragments. Pure arithmetic, bf16 only (T = 8 elements per 16-byte chunk). Sources, in the PTX ISA (numbers of 9.2;
 * the titles stay): 9.7.15.5.1.1.1 "Matrix Fragments for wgmma.mma_async.m64nNk16", 9.7.15.5.1.2.1.3 "Canonical Layouts",
 * 9.7.15.5.1.2.2 "Matrix Descriptor Format", "stmatrix".
 * With Swizzle<B,4,3> over the layouts of the table, in elements:
 *               MN-major                            K-major
 *   none        ((T,1,m),(8,k)):((1,T,SBO),(1T,LBO))   ((8,m),(T,2k)):((1T,SBO),(1,LBO))
 *   32 bytes    ((T,2,m),(8,k)):((1,T,LBO),(2T,SBO))   ((8,m),(T,2k)):((2T,SBO),(1,T))
 *   64 bytes    ((T,4,m),(8,k)):((1,T,LBO),(4T,SBO))   ((8,m),(T,2k)):((4T,SBO),(1,T))
 *   128 bytes   ((T,8,m),(8,k)):((1,T,LBO),(8T,SBO))   ((8,m),(T,2k)):((8T,SBO),(1,T)) */
#ifndef GQAKIT_TESTS_SIMT_SM90_LAYOUT_H
#define GQAKIT_TESTS_SIMT_SM90_LAYOUT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Swizzle<B,4,3> of a shared address, width = 16 << B bytes: bits 4 .. 4+B-1 ^= bits 7 .. 7+B-1. width 0: unchanged. */
uint32_t sm90_swizzle(uint32_t address, int width);

struct sm90_operand {
    uint32_t start, lbo, sbo; /* bytes */
    int swizzle;              /* bytes */
    int base_offset;
};
struct sm90_operand sm90_operand_decode(uint64_t descriptor);

/* Address of a 16-byte chunk of an operand of M or N rows and 16 columns of K. K-major: row `mn`, columns 8 x (k8 = 0, 1) .. + 7 of K.
 * MN-major: elements 8 mn8 .. + 7 of M or N at column k of K. */
uint32_t sm90_chunk_k_major(const struct sm90_operand *o, int mn, int k8);
uint32_t sm90_chunk_mn_major(const struct sm90_operand *o, int mn8, int k);
/* Address of element (mn, k). */
uint32_t sm90_element(const struct sm90_operand *o, int mn_major, int mn, int k);
/* NULL, or why the descriptor is not one of the canonical layouts for an operand of `rows` along M or N. */
const char *sm90_operand_fault(const struct sm90_operand *o, uint64_t descriptor, int mn_major, int rows);

/* thread: 0 .. 127 of the warpgroup. d[i] of the accumulator; half h of register r of A; half h of register r of stmatrix.x4's
 * matrix r (thread: a lane). */
void sm90_fragment_d(int thread, int i, int *row, int *column);
void sm90_fragment_a(int thread, int r, int h, int *row, int *k);
void sm90_fragment_stmatrix(int lane, int h, int *row, int *column);

#ifdef __cplusplus
}
#endif
#endif
