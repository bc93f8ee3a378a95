/* The loops of the CPU backend for AVX2; see loops.h. */
#define LOOPS_NAME loops_avx2
#define LOOPS_LABEL "AVX2"
#include "loops_table.inc"
