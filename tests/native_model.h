/* A tiny model for the tests of the native form: H = 6, G = 3 and 2 (per layer), D != C/H, values that encode their place. */
#ifndef GQAKIT_TESTS_NATIVE_MODEL_H
#define GQAKIT_TESTS_NATIVE_MODEL_H

#include "checkpoints/checkpoint.h"

void native_arch(struct arch *a, int64_t C, int per_layer); /* arch_free by the caller */
/* Rows written unevenly; every value is model_value of its place. */
void model_fill(struct ckpt_writer *w, int64_t rows);
float model_value(const char *tensor, int64_t i);
void model_make(const char *path, const struct arch *a, enum dtype dtype, int compress);
/* Every element of ck against model_value in ck's own dtype. */
void model_check(struct checkpoint *ck, enum dtype rounded);
void model_convert(const char *from, const char *to, enum dtype dtype);

/* A step whose arrays hold f(step): param/... of the arch, and m/, v/ for one of them. */
struct step_made { struct step_array *arrays; int n; };
void step_make(struct step_made *m, const struct arch *a, int64_t step);
void step_unmake(struct step_made *m);
enum code step_put(const char *run, const struct arch *a, int64_t step, int keep);
/* Which step the loader finds: its arrays and meta are checked. -1: none. */
int64_t step_found(const char *path, const struct arch *a);

#endif
