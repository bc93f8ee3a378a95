/* What the tests of attention on a device share: a table of problems that every attention kernel must pass, and the check of one.
 *
 * Truth is tests/reference/attention.h in double on the rounded inputs. The plain low-precision computation, whose error is
 * doubled to judge ours, holds whole rows of scores in f32 and rounds to the type under test where a naive program would:
 * P before P v, O; in the backward P and dS before their products, and the gradients. f32: nothing is rounded, sums run in order. */
#ifndef GQAKIT_TESTS_DEVICE_ATTENTION_DEVICE_CASE_H
#define GQAKIT_TESTS_DEVICE_ATTENTION_DEVICE_CASE_H

#include "device_case.h"
#include "reference/attention.h"

struct attention_device_case {
    const char *name;
    int B, T, S, H, G, D;
    int causal, q_offset, window_left, window_right; /* windows < 0: none */
    int documents, boundary;                         /* documents 0: none; else the first ends at key `boundary`, the others share the rest evenly */
    int strided; /* 1: q, k, v in one buffer of rows when T == S (else k and v in one), with gaps between and after the heads */
    int alibi;   /* 1: slopes of Press et al. 2022; 2: steep ones of both signs */
    int sharp;   /* 1: large scores, and larger ones for later keys, so that the running maximum moves in every tile */
};

enum { ATTENTION_FWD = 1, ATTENTION_BWD = 2 };

/* The short list; with GQAKIT_TEST_LONG=1 in the environment the long one, which contains it. Every case has D % 8 == 0. */
const struct attention_device_case *attention_device_cases(int *n);
/* Runs the passes asked for and fails the test unless they agree by the 2x rule, wrote nothing else, and reported no fault.
 * ATTENTION_BWD alone is fed the reference's O (rounded) and lse, both passes together the device's own. Frees what it allocated. */
void attention_device_check(const struct attention_device_case *c, enum dtype type, int deterministic, int passes);
/* attention_device_check for every case of the list whose D is in [D_min, D_max]. */
void attention_device_check_all(enum dtype type, int deterministic, int passes, int D_min, int D_max);
/* Two backward runs on the same inputs give the same bits in deterministic mode. */
void attention_device_check_repeat(const struct attention_device_case *c, enum dtype type);

#endif
