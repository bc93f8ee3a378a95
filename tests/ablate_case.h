/* An ablation with made-up results: what the report's functions are tested on. */
#ifndef GQAKIT_TESTS_ABLATE_CASE_H
#define GQAKIT_TESTS_ABLATE_CASE_H

#include "eval/ablate.h"

/* 8 heads; grid {4, 2, 1} x {mean, svd+all} x {ce, distill} x {0, 0.005, 0.05} x seeds {0, 1}; nothing run yet. */
void ablate_case(struct ablation *a);
void ablate_case_again(struct ablation *a); /* the grid anew after a change of its config; results are forgotten */
/* Every cell done: loss = 1 + what ablate_case_excess says, +- 0.001 by seed; 4 validation points, decode rows, one task. */
void ablate_case_fill(struct ablation *a);
double ablate_case_excess(const struct cell *c);
struct cell *ablate_case_cell(struct ablation *a, int64_t G, const char *method, const char *loss, double alpha, int64_t seed); /* must exist */

#endif
