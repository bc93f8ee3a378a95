/* A backend that computes as plain code in bf16 would: activations and matrices bf16, every operation reads them as f32, runs the CPU's
 * f32 operation and rounds its outputs to nearest. The reference of the 2x rule, and a bf16 backend where there is no GPU. */
#ifndef GQAKIT_TESTS_BF16_BACKEND_H
#define GQAKIT_TESTS_BF16_BACKEND_H

#include "kernels/kernels.h"

const struct backend *bf16_backend(void);

#endif
