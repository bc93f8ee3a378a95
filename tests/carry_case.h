/* Small models, runs and their moments for the tests of gqa-convert --moments carry. Paths and arrays: free by the caller. */
#ifndef GQAKIT_TESTS_CARRY_CASE_H
#define GQAKIT_TESTS_CARRY_CASE_H

#include "harness.h"

enum { C = 24, D = 8, H = 6, L = 2, CD = C * D };

/* H query heads on G, bytes as tokens; each `repeat` consecutive K/V heads are equal. */
char *carry_model(const char *name, int64_t G, int64_t repeat);
char *carry_config(void); /* 3 steps of 2 sequences, constant rate; data in TEMP/carry.txt, one window of it in TEMP/window.txt */
/* gqa-uptrain on `model` into TEMP/out; returns that path. a, b, c: key=value or NULL; say: what stderr contains, or NULL. */
char *carry_train(const char *model, const char *out, const char *a, const char *b, const char *c, const char *say);
float *carry_values(const char *dir, const char *name, int64_t n0, int64_t n1); /* an array of the newest step */
float *carry_moment(const char *dir, char which, int layer, const char *name, int64_t n0, int64_t n1); /* "m/dec.0.attn.k.w" */
char *carry_beside(const char *converted);
float *carry_weight(const char *path, int layer, const char *name); /* of a checkpoint */

#endif
