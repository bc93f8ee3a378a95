/* Which heads share a group: the partition of the G0 heads into groups of m with the least sum of J, K's and V's, of the method itself;
 * of svd for align, whose own J takes tens of times longer and which svd's bounds from below.
 *   few sets of m heads   J of every one of them, then the best partition by dynamic programming over the heads already placed:
 *                         best(placed) = min over sets that hold the lowest head not placed.
 *   many                  J of every pair; a partition with a small sum over its pairs by swaps from the consecutive one; then swaps
 *                         judged by the groups' own J, the most promising by pairs first.
 * A partition that is not better than the consecutive one, by the method's own J, is that one. Where heads may not be permuted nothing else is looked at. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "merge_parts.h"

#define MOST_SETS 1000
#define MOST_HEADS 16
#define MOST_TRIES 16  /* swaps judged by J in one round */
#define MOST_ROUNDS 8
#define BETTER 1e-9    /* a smaller share of J than this is no reason to permute */

struct search {
    const struct moments *moments;
    enum merge_method method;
    int64_t heads, m;
    double *pair; /* [heads, heads] */
};

static enum code group_cost(const struct search *s, const int64_t *members, int64_t m, double *J)
{
    struct side side[2];
    struct side_cost cost[2];
    memset(side, 0, sizeof side);
    memset(cost, 0, sizeof cost);
    enum code c = side_new(&side[0], s->moments, SIDE_K, members, m);
    if (c == OK)
        c = side_new(&side[1], s->moments, SIDE_V, members, m);
    int64_t pick = c == OK ? pick_head(&side[0], &side[1], s->method) : 0;
    for (int i = 0; c == OK && i < 2; i++) {
        c = side_solve(&side[i], s->method, pick);
        if (c == OK)
            c = side_cost(&side[i], &cost[i]);
    }
    side_free(&side[0]);
    side_free(&side[1]);
    *J = cost[0].j + cost[1].j;
    return c;
}

/* Costs of n sets of m heads each, in parallel. */
static enum code many_costs(const struct search *s, const int64_t *sets, int64_t n, int64_t m, double *J)
{
    enum code code = OK;
    char text[512] = "";
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < n; i++) {
        enum code c = group_cost(s, sets + i * m, m, &J[i]);
        if (c != OK)
#pragma omp critical(merge_grouping_trouble)
        {
            code = c;
            snprintf(text, sizeof text, "%s", fail_text());
        }
    }
    return code == OK ? OK : fail(code, "%s", text);
}

/* ---- few sets ------------------------------------------------------------------------------------------------------------ */

/* n over m, or more than `most`. */
static int64_t choose(int64_t n, int64_t m, int64_t most)
{
    int64_t c = 1;
    for (int64_t i = 1; i <= m; i++) {
        c = c * (n - m + i) / i;
        if (c > most)
            return most + 1;
    }
    return c;
}

static void list_sets(int64_t *sets, int64_t heads, int64_t m)
{
    int64_t at[MOST_HEADS], n = 0;
    for (int64_t i = 0; i < m; i++)
        at[i] = i;
    for (;;) {
        memcpy(sets + n++ * m, at, (size_t)m * sizeof *sets);
        int64_t i = m - 1;
        while (i >= 0 && at[i] == heads - m + i)
            i--;
        if (i < 0)
            return;
        at[i]++;
        for (int64_t k = i + 1; k < m; k++)
            at[k] = at[k - 1] + 1;
    }
}

static uint32_t mask_of(const int64_t *set, int64_t m)
{
    uint32_t mask = 0;
    for (int64_t i = 0; i < m; i++)
        mask |= 1u << set[i];
    return mask;
}

/* best[placed]: least cost of placing the others; by[placed]: the set to take. */
static void best_partition(int64_t *members, const int64_t *sets, const double *J, int64_t n, int64_t heads, int64_t m, double *best, int32_t *by)
{
    uint32_t all = (uint32_t)((1u << heads) - 1);
    best[all] = 0;
    for (uint32_t placed = all; placed-- > 0;) {
        best[placed] = -1;
        uint32_t low = ~placed & (placed + 1); /* the lowest head not placed */
        for (int64_t i = 0; i < n; i++) {
            uint32_t mask = mask_of(sets + i * m, m);
            if (!(mask & low) || mask & placed || best[placed | mask] < 0)
                continue;
            double cost = J[i] + best[placed | mask];
            if (best[placed] < 0 || cost < best[placed]) {
                best[placed] = cost;
                by[placed] = (int32_t)i;
            }
        }
    }
    uint32_t placed = 0;
    for (int64_t g = 0; g < heads / m; g++) {
        const int64_t *set = sets + by[placed] * m;
        memcpy(members + g * m, set, (size_t)m * sizeof *members);
        placed |= mask_of(set, m);
    }
}

static enum code exact(const struct search *s, int64_t *members, int64_t n)
{
    size_t masks = (size_t)1 << s->heads;
    int64_t *sets = malloc((size_t)(n * s->m) * sizeof *sets);
    double *J = malloc(((size_t)n + masks) * sizeof *J);
    int32_t *by = malloc(masks * sizeof *by);
    enum code c = sets && J && by ? OK : fail(ERR_MEMORY, "out of memory for %lld sets of heads", (long long)n);
    if (c == OK) {
        list_sets(sets, s->heads, s->m);
        c = many_costs(s, sets, n, s->m, J);
    }
    if (c == OK)
        best_partition(members, sets, J, n, s->heads, s->m, J + n, by);
    free(sets);
    free(J);
    free(by);
    return c;
}

/* ---- many ---------------------------------------------------------------------------------------------------------------- */

static enum code pair_costs(struct search *s)
{
    int64_t H = s->heads, n = H * (H - 1) / 2, at = 0;
    int64_t *sets = malloc((size_t)(2 * n) * sizeof *sets);
    double *J = malloc((size_t)n * sizeof *J);
    enum code c = sets && J ? OK : fail(ERR_MEMORY, "out of memory for %lld pairs of heads", (long long)n);
    for (int64_t i = 0; c == OK && i < H; i++)
        for (int64_t k = i + 1; k < H; k++, at++) {
            sets[2 * at] = i;
            sets[2 * at + 1] = k;
        }
    if (c == OK)
        c = many_costs(s, sets, n, 2, J);
    for (at = 0; c == OK && at < n; at++)
        s->pair[sets[2 * at] * H + sets[2 * at + 1]] = s->pair[sets[2 * at + 1] * H + sets[2 * at]] = J[at];
    free(sets);
    free(J);
    return c;
}

/* What the sum over pairs gains when places x and y are swapped; negative is better. */
static double swap_gain(const struct search *s, const int64_t *members, int64_t x, int64_t y)
{
    double gain = 0;
    int64_t gx = x / s->m * s->m, gy = y / s->m * s->m;
    for (int64_t i = 0; i < s->m; i++) {
        if (gx + i != x)
            gain += s->pair[members[y] * s->heads + members[gx + i]] - s->pair[members[x] * s->heads + members[gx + i]];
        if (gy + i != y)
            gain += s->pair[members[x] * s->heads + members[gy + i]] - s->pair[members[y] * s->heads + members[gy + i]];
    }
    return gain;
}

static void swap(int64_t *members, int64_t x, int64_t y)
{
    int64_t t = members[x];
    members[x] = members[y];
    members[y] = t;
}

/* Always the best swap by pairs, until none helps. */
static void descend_by_pairs(const struct search *s, int64_t *members)
{
    for (int64_t round = 0; round < s->heads * s->heads; round++) {
        double best = -1e-12;
        int64_t bx = -1, by = -1;
        for (int64_t x = 0; x < s->heads; x++)
            for (int64_t y = (x / s->m + 1) * s->m; y < s->heads; y++) {
                double gain = swap_gain(s, members, x, y);
                if (gain < best) {
                    best = gain;
                    bx = x;
                    by = y;
                }
            }
        if (bx < 0)
            return;
        swap(members, bx, by);
    }
}

struct candidate { double gain; int64_t x, y; };
static int by_gain(const void *a, const void *b)
{
    const struct candidate *p = a, *q = b;
    if (p->gain < q->gain || p->gain > q->gain)
        return p->gain < q->gain ? -1 : 1;
    return p->x != q->x ? (p->x < q->x ? -1 : 1) : p->y < q->y ? -1 : p->y > q->y;
}

/* One round by J: the best of the most promising swaps; 0 in *better when none is. */
static enum code try_swaps(const struct search *s, int64_t *members, double *J, struct candidate *list, int *better)
{
    int64_t n = 0, m = s->m, sets[2 * MOST_TRIES * 64];
    double costs[2 * MOST_TRIES], best = 0;
    for (int64_t x = 0; x < s->heads; x++)
        for (int64_t y = (x / m + 1) * m; y < s->heads; y++)
            list[n++] = (struct candidate){swap_gain(s, members, x, y), x, y};
    qsort(list, (size_t)n, sizeof *list, by_gain);
    n = n < MOST_TRIES ? n : MOST_TRIES;
    for (int64_t i = 0; i < n; i++) {
        swap(members, list[i].x, list[i].y);
        memcpy(sets + 2 * i * m, members + list[i].x / m * m, (size_t)m * sizeof *sets);
        memcpy(sets + (2 * i + 1) * m, members + list[i].y / m * m, (size_t)m * sizeof *sets);
        swap(members, list[i].x, list[i].y);
    }
    TRY(many_costs(s, sets, 2 * n, m, costs));
    int64_t taken = -1;
    for (int64_t i = 0; i < n; i++) {
        double before = J[list[i].x / m] + J[list[i].y / m], gain = costs[2 * i] + costs[2 * i + 1] - before;
        if (gain < best - BETTER * before) {
            best = gain;
            taken = i;
        }
    }
    *better = taken >= 0;
    if (taken >= 0) {
        swap(members, list[taken].x, list[taken].y);
        J[list[taken].x / m] = costs[2 * taken];
        J[list[taken].y / m] = costs[2 * taken + 1];
    }
    return OK;
}

static enum code by_swaps(struct search *s, int64_t *members)
{
    int64_t H = s->heads;
    s->pair = calloc((size_t)(H * H + H), sizeof *s->pair);
    struct candidate *list = malloc((size_t)(H * H) * sizeof *list);
    enum code c = s->pair && list ? pair_costs(s) : fail(ERR_MEMORY, "out of memory for %lld heads", (long long)H);
    double *J = s->pair ? s->pair + H * H : NULL;
    if (c == OK) {
        descend_by_pairs(s, members);
        c = many_costs(s, members, H / s->m, s->m, J);
    }
    int better = 1;
    for (int round = 0; c == OK && better && round < MOST_ROUNDS; round++)
        c = try_swaps(s, members, J, list, &better);
    free(s->pair);
    free(list);
    return c;
}

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* Members of a group, and groups by their first member, in ascending order. */
static void in_order(int64_t *members, int64_t heads, int64_t m)
{
    for (int64_t g = 0; g < heads; g += m)
        qsort(members + g, (size_t)m, sizeof *members, ascending);
    for (int64_t g = 0; g < heads; g += m)
        for (int64_t k = g + m; k < heads; k += m)
            for (int64_t i = 0; members[k] < members[g] && i < m; i++)
                swap(members, g + (m - 1 - i), k + (m - 1 - i));
}

static enum code total_cost(const struct search *s, const int64_t *members, double *J)
{
    *J = 0;
    double *each = malloc((size_t)s->heads * sizeof *each);
    if (!each)
        return fail(ERR_MEMORY, "out of memory for %lld heads", (long long)s->heads);
    enum code c = many_costs(s, members, s->heads / s->m, s->m, each);
    for (int64_t g = 0; c == OK && g < s->heads / s->m; g++)
        *J += each[g];
    free(each);
    return c;
}

static enum code find(struct search *s, int64_t *members)
{
    double found, consecutive;
    int64_t sets = s->heads <= MOST_HEADS ? choose(s->heads, s->m, MOST_SETS) : MOST_SETS + 1;
    TRY(total_cost(s, members, &consecutive));
    enum merge_method method = s->method;
    s->method = method == MERGE_ALIGN ? MERGE_SVD : method;
    TRY(sets <= MOST_SETS ? exact(s, members, sets) : by_swaps(s, members));
    in_order(members, s->heads, s->m);
    s->method = method;
    TRY(total_cost(s, members, &found));
    for (int64_t i = 0; !(found < consecutive * (1 - BETTER) - BETTER * BETTER) && i < s->heads; i++)
        members[i] = i;
    return OK;
}

enum code merge_grouping(const struct attention_layer *from, const struct merge_input *input, enum merge_method method, int64_t G, int64_t *members)
{
    CHECK(G > 0 && from->G % G == 0);
    struct attention_layer source;
    struct moments moments;
    double *scaled;
    struct search s = {.moments = &moments, .method = method, .heads = from->G, .m = from->G / G};
    for (int64_t i = 0; i < from->G; i++)
        members[i] = i;
    if (from->fixed_heads || s.m == 1 || G == 1 || method == MERGE_RANDOM || s.m > 64)
        return OK;
    TRY(keys_to_merge(&source, &scaled, from, s.m));
    enum code c = moments_new(&moments, &source, input);
    if (c == OK) {
        c = find(&s, members);
        moments_free(&moments);
    }
    free(scaled);
    return c;
}
