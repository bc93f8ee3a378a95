/* The loops of the CPU backend for plain C; see loops.h. */
#define LOOPS_NAME loops_plain
#define LOOPS_LABEL "plain C"
#include "loops_table.inc"
