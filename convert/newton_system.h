/* Private to the refit: one layer's Gauss-Newton system (refit_newton.c) and its parts. With r what the layer's output lacks (of the original's), J
 * the change of the output by changes x of W_Q, W_K, W_V and W_O, on N tokens of the calibration:
 *
 *      min over x of  |J x - r|^2 + mu |x|_M^2           (J^T J + mu M) x = J^T r
 */
#ifndef GQAKIT_CONVERT_NEWTON_SYSTEM_H
#define GQAKIT_CONVERT_NEWTON_SYSTEM_H

#include "calibrate_parts.h"
#include "newton.h"
#include "refit_scores.h"

enum { PARTS = 4 };                                /* q, k, v, o */
struct effort { int rounds, iterations; };         /* linearisations, and steps of conjugate gradients in each */

/* inverse [width, width] of E[u u^T], inverse_out [rows, rows] of E[d d^T]; NULL for W_O, where that is the square of the output's scale. */
struct part { struct map map; int64_t rows, width; float *x, *best, *g, *p, *mp, *was; float *inverse, *inverse_out; };

struct newton {
    struct calibrating *c;
    struct linearised a;
    struct effort effort;
    struct part part[PARTS];
    int64_t *sequence;            /* [count] */
    float *r, *e;                 /* [N,C] what is missing; J p */
    float *dq, *dk, *dv, *d_o;    /* as q, k, v, o */
    float *mid;                   /* [held rows, C] */
    float *half;                  /* as the largest part */
    float *memory;
};

/* newton_size.c. The shape of the system and the effort a budget of arithmetic allows for it; count 0: too few tokens. `rows` tokens may be fitted to. */
struct linearised newton_shape(struct effort *effort, const struct arch *a, const struct arch_block *b, int64_t G, int64_t T, int64_t rows);
int64_t newton_floats(const struct linearised *a);
void newton_place(struct newton *w); /* w->memory, of that many, into its arrays */

/* newton_system.c. r [rows,C]: what the layer lacks of the original on these rows, `v` being its values there. */
enum code newton_missing(struct newton *w, const struct span *s, struct model_block_values *v, float *r) MUST_USE;
/* q, k, v, o, n, p and r of all sequences, at the present weights. window 0: none. */
enum code newton_linearise(struct newton *w, int64_t window) MUST_USE;
enum code newton_forward(struct newton *w) MUST_USE;                  /* e = J x, x in the parts' p */
enum code newton_backward(struct newton *w, const float *e) MUST_USE; /* g = J^T e */

/* newton_precondition.c. M at the present inputs and outputs; the layer's input, taken when `first`, stays what it is. */
enum code newton_preconditioner(struct newton *w, int first) MUST_USE;
void newton_precondition(const struct newton *w, const struct part *s, float *to, const float *from); /* to = M^-1 from, of one part */

#endif
