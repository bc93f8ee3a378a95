/* See convert.h. The result of a layer is held as f32: weights are f32 or narrower. Files keep a layer's tensors together, so one or two
 * layers are held at a time; a file that does not costs memory, not correctness. */
#include <stdlib.h>
#include <string.h>

#include "convert.h"

static const char *const NAMES[] = {"attn.q.w", "attn.k.w", "attn.v.w", "attn.o.w", "attn.q.b", "attn.k.b", "attn.v.b", "attn.q_norm.w", "attn.k_norm.w"};
enum { N_NAMES = sizeof NAMES / sizeof *NAMES };

struct held {
    float *values; /* all tensors of the layer, one after the other */
    int64_t first[N_NAMES], count[N_NAMES];
    int computed;
    int64_t left; /* tensors that are not written yet */
};

struct layers {
    struct checkpoint *source;
    const struct plan *plan;
    const struct options *o;
    struct outcome *out;
    struct held *held; /* [L] */
};

enum code layers_open(struct layers **s, struct checkpoint *source, const struct plan *plan, const struct options *o, struct outcome *out)
{
    struct layers *n = calloc(1, sizeof *n);
    *s = n;
    if (n)
        n->held = calloc((size_t)out->L + 1, sizeof *n->held);
    if (!n || !n->held)
        return fail(ERR_MEMORY, "out of memory for %lld layers", (long long)out->L);
    n->source = source;
    n->plan = plan;
    n->o = o;
    n->out = out;
    return OK;
}

void layers_close(struct layers *s)
{
    for (int64_t l = 0; s && s->held && l < s->out->L; l++)
        free(s->held[l].values);
    if (s)
        free(s->held);
    free(s);
}

int layers_holds(const struct layers *s, const struct ckpt_tensor *in)
{
    if (in->layer < 0 || s->plan->pooled[in->layer] == s->plan->from.stack[STACK_DEC].block[in->layer].G)
        return 0;
    if (in->pool == POOL_KV || (in->pool == POOL_QKNORM && s->plan->from.qk_norm != QK_NORM_HEAD))
        return 1;
    int moves = s->o->grouping == GROUPING_SIMILAR, turns = s->o->method == MERGE_ALIGN || s->o->method == MERGE_SVD;
    if (in->pool == POOL_QUERY || in->pool == POOL_OUT)
        return moves || turns;
    return moves && s->plan->from.qk_norm != QK_NORM_HEAD && strstr(in->name, ".q_norm.") != NULL;
}

/* The tables of what the layer cost. */
static enum code cost_tables(struct layer_errors *e, int64_t heads, int64_t G)
{
    TRY(error_table(&e->error[0], G));
    TRY(error_table(&e->error[1], G));
    e->heads = heads;
    e->j = calloc((size_t)G, sizeof *e->j);
    e->mean_j = calloc((size_t)G, sizeof *e->mean_j);
    e->members = calloc((size_t)heads, sizeof *e->members);
    if (!e->j || !e->mean_j || !e->members)
        return fail(ERR_MEMORY, "out of memory for the error table");
    for (int64_t g = 0; g < G; g++)
        e->error[0].size[g] = e->error[1].size[g] = 1;
    for (int64_t i = 0; i < heads; i++)
        e->members[i] = i;
    return OK;
}

static enum code hold(struct held *h, const struct attention_layer *to)
{
    int64_t n = 0;
    for (int i = 0; i < N_NAMES; i++) {
        attention_layer_tensor(to, NAMES[i], &h->count[i]);
        h->first[i] = n;
        n += h->count[i];
    }
    h->values = malloc((size_t)n * sizeof *h->values);
    if (!h->values)
        return fail(ERR_MEMORY, "out of memory for layer %lld's merged heads", (long long)to->layer);
    for (int i = 0; i < N_NAMES; i++) {
        const double *from = attention_layer_tensor(to, NAMES[i], &h->count[i]);
        for (int64_t k = 0; k < h->count[i]; k++)
            h->values[h->first[i] + k] = (float)from[k];
    }
    h->computed = 1;
    return OK;
}

enum code layers_merge(struct attention_layer *to, const struct attention_layer *from, const struct plan *plan, const struct options *o,
                       const double *moments, struct outcome *out)
{
    struct layer_errors *e = &out->layers[from->layer];
    struct merge_input input = {.moments = moments, .seed = (uint64_t)o->seed, .init_sd = initializer_range(&plan->from)};
    enum merge_method method = (enum merge_method)o->method;
    struct merge_cost cost;
    TRY(cost_tables(e, from->G, to->G));
    if (o->grouping == GROUPING_SIMILAR)
        TRY(merge_grouping(from, &input, method, to->G, e->members));
    if (out->keep_maps && (method == MERGE_ALIGN || method == MERGE_SVD)) {
        size_t n = (size_t)(from->G * from->D * from->D);
        e->e_k = calloc(2 * n, sizeof *e->e_k);
        if (!e->e_k)
            return fail(ERR_MEMORY, "out of memory for the maps of layer %lld's heads", (long long)from->layer);
        e->e_v = e->e_k + n;
    }
    cost = (struct merge_cost){e->error[0].distance, e->error[1].distance, e->j, e->mean_j, e->e_k, e->e_v};
    return merge_heads(to, from, &input, method, e->members, &cost);
}

static enum code compute(struct layers *s, struct held *h, int64_t layer)
{
    struct attention_layer from = {0}, to = {0};
    double *moments = NULL;
    enum code c = attention_layer_read(&from, s->source, layer);
    if (c == OK)
        c = merge_input_guess(&moments, s->source, layer);
    if (c == OK)
        c = attention_layer_new(&to, ckpt_arch(s->source), layer, s->plan->pooled[layer]);
    if (c == OK)
        c = layers_merge(&to, &from, s->plan, s->o, moments, s->out);
    free(moments);
    if (c == OK)
        c = hold(h, &to);
    for (int i = 0; c == OK && i < ckpt_count(s->source); i++) {
        const struct ckpt_tensor *t = ckpt_at(s->source, i);
        h->left += t->layer == layer && layers_holds(s, t);
    }
    attention_layer_free(&from);
    attention_layer_free(&to);
    return c;
}

/* Each of the pooled heads `repeat` times in a row; other tensors have as many rows as there are. */
enum code layers_write_rows(struct ckpt_writer *w, const struct ckpt_tensor *out, const float *values, int64_t count, int64_t head)
{
    int64_t width = out->nd == 2 ? out->n[1] : 1, rows = count / width, repeat = out->n[0] / rows;
    if (repeat == 1)
        return ckpt_write(w, out, 0, rows, values, DT_F32);
    for (int64_t row = 0; row < rows; row += head)
        for (int64_t k = 0; k < repeat; k++)
            TRY(ckpt_write(w, out, row * repeat + k * head, head, values + row * width, DT_F32));
    return OK;
}

enum code layers_write(struct layers *s, const struct ckpt_tensor *in, struct ckpt_writer *w, const struct ckpt_tensor *out)
{
    struct held *h = &s->held[in->layer];
    if (!h->computed)
        TRY(compute(s, h, in->layer));
    int i = 0;
    while (i < N_NAMES && strcmp(strstr(in->name, "attn."), NAMES[i]) != 0)
        i++;
    CHECK(i < N_NAMES && h->count[i] > 0 && h->left > 0);
    TRY(layers_write_rows(w, out, h->values + h->first[i], h->count[i], s->plan->from.stack[STACK_DEC].block[in->layer].D));
    if (--h->left == 0) {
        free(h->values);
        h->values = NULL;
    }
    return OK;
}
