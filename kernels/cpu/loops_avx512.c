/* The loops of the CPU backend for AVX-512; see loops.h. */
#define LOOPS_NAME loops_avx512
#define LOOPS_LABEL "AVX-512"
#include "loops_table.inc"
