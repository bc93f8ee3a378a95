/* Log-probabilities of many short texts at once. Rows of T positions hold as many texts as fit, each a document of its own (segments
 * and positions restart), so a batch is nearly full whatever their lengths: the longest text left opens a row and the
 * shortest left fill it up. */
#include "tasks.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct order { int64_t n, index; };

static int longest_first(const void *a, const void *b)
{
    const struct order *x = a, *y = b;
    return x->n != y->n ? (x->n < y->n) - (x->n > y->n) : (x->index > y->index) - (x->index < y->index);
}

struct place { const struct task_request *r; int64_t at; }; /* first position of the request in the batch */

struct packer {
    const struct task_request *requests;
    struct order *order;
    int64_t head, tail; /* [head, tail) of the order is left */
    struct batch b;
    struct place *place;
    int64_t n_places;
    float *logp;
};

static void put(struct packer *k, const struct task_request *r, int64_t at, int32_t segment)
{
    for (int64_t i = 0; i + 1 < r->n; i++) {
        k->b.ids[at + i] = r->ids[i];
        k->b.targets[at + i] = i + 1 >= r->n - r->scored ? r->ids[i + 1] : -1;
        k->b.positions[at + i] = (int32_t)i;
        k->b.segments[at + i] = segment;
    }
    k->place[k->n_places++] = (struct place){ r, at };
}

static void fill_row(struct packer *k, int64_t row)
{
    int64_t T = k->b.T, used = 0;
    int32_t segment = 0;
    for (int first = 1; k->head < k->tail; first = 0) {
        const struct task_request *r = &k->requests[k->order[first ? k->head : k->tail - 1].index];
        if (used + r->n - 1 > T)
            break;
        put(k, r, row * T + used, segment++);
        used += r->n - 1;
        first ? k->head++ : k->tail--;
    }
    for (int64_t i = row * T + used; i < (row + 1) * T; i++) { /* the padding is a document of its own */
        k->b.ids[i] = 0;
        k->b.targets[i] = -1;
        k->b.positions[i] = (int32_t)(i - row * T - used);
        k->b.segments[i] = segment;
    }
}

static enum code run_batch(struct session *s, struct packer *k, int64_t rows)
{
    struct batch b = k->b;
    double loss = 0;
    int64_t count = 0;
    b.B = 0;
    k->n_places = 0;
    while (b.B < rows && k->head < k->tail)
        fill_row(k, b.B++);
    TRY(model_score(s->model, &b, view_2d(k->logp, DT_F32, b.B, b.T), &loss, &count));
    for (int64_t i = 0; i < k->n_places; i++) {
        const struct task_request *r = k->place[i].r;
        double sum = 0;
        for (int64_t t = r->n - 1 - r->scored; t < r->n - 1; t++)
            sum += (double)k->logp[k->place[i].at + t];
        r->sum->logp = sum;
        if (!isfinite(sum))
            return fail(ERR_NUMERIC, "%s: a log-probability is not finite; look for NaN or infinite weights with gqa-convert", ckpt_path(s->checkpoint));
    }
    return OK;
}

enum code task_score(struct session *s, const struct task_request *requests, int64_t n, int64_t rows, int64_t T, struct progress *p)
{
    struct packer k = { .requests = requests, .tail = n };
    int64_t done = p->done;
    TRY(batch_alloc(&k.b, rows, T));
    k.order = malloc((size_t)(n + 1) * sizeof *k.order);
    k.place = malloc((size_t)(rows * T) * sizeof *k.place);
    k.logp = malloc((size_t)(rows * T) * sizeof *k.logp);
    enum code c = k.order && k.place && k.logp ? OK : fail(ERR_MEMORY, "out of memory for %lld x %lld tokens", (long long)rows, (long long)T);
    for (int64_t i = 0; c == OK && i < n; i++)
        k.order[i] = (struct order){ requests[i].n, i };
    if (c == OK)
        qsort(k.order, (size_t)n, sizeof *k.order, longest_first);
    while (c == OK && k.head < k.tail) {
        c = run_batch(s, &k, rows);
        progress_update(p, done + n - (k.tail - k.head), NULL);
    }
    free(k.order);
    free(k.place);
    free(k.logp);
    batch_free(&k.b);
    return c;
}

static int64_t characters(const char *text)
{
    int64_t n = 0;
    for (; *text; text++)
        n += ((unsigned char)*text & 0xC0) != 0x80;
    return n;
}

void task_judge(const struct task_item *item, struct task_outcome *o)
{
    for (int i = 1; i < item->n; i++) /* equal texts are equally likely, wherever in a batch they stood */
        for (int k = 0; k < i; k++)
            if (!strcmp(item->text[i], item->text[k])) {
                o->sum[i] = o->sum[k];
                break;
            }
    int best[3] = { 0, 0, 0 };
    double most[3] = { 0, 0, 0 };
    for (int i = 0; i < item->n; i++) {
        double by[3] = { o->sum[i].logp, o->sum[i].logp / (double)characters(item->text[i]), o->sum[i].logp / (double)strlen(item->text[i]) };
        for (int k = 0; k < 3; k++)
            if (i == 0 || by[k] > most[k]) {
                most[k] = by[k];
                best[k] = i;
            }
    }
    o->pred = best[0];
    o->pred_norm = best[1];
    o->pred_bytes = best[2];
}
