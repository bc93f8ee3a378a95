/* --kv-budget: how many heads each layer keeps, so that all layers' K/V bytes per token stay within a budget at the least error.
 *
 *   minimise  sum over layers of cost_l(G_l)   so that  sum over layers of bytes_l(G_l) <= budget
 *
 * exactly, by dynamic programming. cost_l(G) is the share of the hidden state behind layer l that is wrong when that layer alone is merged to G
 * heads, and fitted if a refit follows: squared distance of its output from the original's over the original's size, on held-out tokens. The merge's own
 * error J does not compare layers: measured, a layer of small J at the model's start can cost ten times the loss of one of large J. */
#ifndef GQAKIT_CONVERT_BUDGET_H
#define GQAKIT_CONVERT_BUDGET_H

#include "base/base.h"
#include "checkpoints/checkpoint.h"

struct options;

struct budget_option { int64_t G, bytes; double cost; };
/* Legal counts by falling G; the first keeps all heads and costs nothing. */
struct budget_layer { int n, chosen; struct budget_option option[64]; };
struct budget {
    const char *asked;
    int64_t bytes;         /* allowed per token, of all layers, in the result's element type */
    int64_t most, least;   /* of the source, and with one head everywhere */
    int64_t used;
    int64_t L;
    struct budget_layer *layer;
};

/* Sets every layer's `chosen`; among equal costs the fewest bytes, and one number for all layers where that is as good. ERR_NUMERIC: a cost is
 * not finite; ERR_USAGE: even the smallest counts are too many. */
enum code budget_solve(struct budget *b) MUST_USE;

/* Refuses targets that cannot hold a number for each layer, measures the costs (needs o->calibration) and solves. budget_free also
 * after an error. */
enum code budget_choose(struct budget *b, struct checkpoint *source, const struct options *o) MUST_USE;
/* The legal counts and their bytes, costs 0. */
enum code budget_open(struct budget *b, const struct arch *a, enum dtype type) MUST_USE;
void budget_free(struct budget *b);
/* budget_costs.c */
enum code budget_costs(struct budget *b, struct checkpoint *source, const struct options *o) MUST_USE;

json_t *budget_json(const struct budget *b);
void budget_print(const struct budget *b);

#endif
