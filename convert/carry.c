/* AdamW's moments through a conversion. Merging makes W_j ~ E_j W' of a group's heads j, so by the chain
 * rule the gradient of the shared head is the sum of what its heads' gradients say about it,
 *
 *   K, V rows     g' = sum over j of E_j^T g_j         m' = sum E_j^T m_j         v' = sum (E_j^T)^2 v_j   (squares of the entries)
 *   Q rows of h   g' = B_j g,  q . E_j k' = (E_j^T q) . k', so dL/dq = E_j dL/dq'   m' = B_j m      v' = B_j^2 v
 *   O columns     g' = g B_j^T                          m' = m B_j^T               v' = v (B_j^2)^T
 *
 * with B_j = (1 + r) (E_j^T E_j + r e)^-1 E_j^T, e the mean of E_j^T E_j's diagonal: the inverse of E_j where it keeps angles (align: E_j^T),
 * damped along what a head has little of (svd), where the inverse would be as large as that is small: with r = 1e-4 the v' of W_O was tens of
 * times too large. j is the head that query head h reads. m is linear, so m' is what training the merged model would have averaged, exactly so
 * where the heads of a group are equal; v' takes the heads' gradients for uncorrelated. mean, first and select have E = 1: plain sums, query
 * heads move with their group. All other tensors are copied.
 * A refit adds to its tensors in the coordinates they have after the merge, so they keep the moments of the merge. They are the better for it:
 * the fitted model computes nearly what the original did, so its gradients are nearly the original's (sample-mha, 8 heads to 2: cosine of the
 * carried m with the true one 0.3 to 0.8 with --refit all, about 0 without; tests/test_carry_refit.c).
 * Arrays go through in row blocks, one attention tensor at a time whole. Not carried: --method random (fresh heads have no history), repeated heads, keys under a norm over the
 * whole width (its weights move into the rows), results in another class's layout, .h5 and .gguf targets.
 *
 * They lie in DST/optimizer/step-N/, a step directory with moments alone: hashed by its own manifest, which the provenance names. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "linalg.h"

#define RIDGE 0.1 /* r; of 1e-4, 0.01, 0.1 and 0.5 the best for m and v of svd's output columns against the true ones */

struct carry {
    struct step_reader *from;
    int64_t updates;
    const struct plan *plan;
    const struct outcome *out;
    const char *note; /* how they came about */
    struct tensor_spec *specs, *specs_from; /* of result and source */
    int n, n_from;
    struct step_array *arrays; /* [2 n] */
    struct step_source source;
    char held[80];  /* the array whose values are in memory, "" none */
    float *values;
    double *inverse; /* [D, D] B_j, room of 3 more */
};

static int has_full_norm(const struct plan *p) { return p->merges && p->from.qk_norm == QK_NORM_FULL; }

/* Why this conversion carries nothing, or NULL. */
static const char *obstacle(const struct plan *p, const struct options *o)
{
    size_t n = strlen(o->target);
    if ((n > 3 && !strcmp(o->target + n - 3, ".h5")) || (n > 5 && !strcmp(o->target + n - 5, ".gguf")))
        return "a .h5 or .gguf holds weights only; convert into a directory";
    if (p->choice.rewrite)
        return "the result has another class's layout";
    if (p->repeats)
        return "heads of the result are copies";
    if (p->merges && o->method == MERGE_RANDOM)
        return "fresh heads have no history";
    return has_full_norm(p) ? "the weights of the key norm move into the keys" : NULL;
}

static const char *note(const struct plan *p, const struct options *o)
{
    if (!p->merges)
        return "as the source has them";
    return o->refit == REFIT_NONE ? "merged as the weights were" : "merged as the weights were; fitted tensors have the moments of before the fit, which keeps their coordinates";
}

static enum code list_arrays(struct carry *c)
{
    TRY(arch_tensors(&c->plan->arch, &c->specs, &c->n));
    TRY(arch_tensors(&c->plan->from, &c->specs_from, &c->n_from));
    c->arrays = calloc(2 * (size_t)c->n + 1, sizeof *c->arrays);
    if (!c->arrays)
        return fail(ERR_MEMORY, "out of memory for the list of moments");
    for (int i = 0; i < 2 * c->n; i++) {
        const struct tensor_spec *s = &c->specs[i / 2];
        struct step_array *a = &c->arrays[i];
        *a = (struct step_array){.dtype = DT_F32, .nd = s->nd, .n = {s->n[0], s->nd == 2 ? s->n[1] : 1}, .source = &c->source};
        snprintf(a->name, sizeof a->name, "%c/%s", i % 2 ? 'v' : 'm', s->name);
    }
    return OK;
}

static enum code same_model(const struct carry *c, const char *path)
{
    struct tensor_spec *specs = NULL;
    int n = 0;
    TRY(arch_tensors(step_arch(c->from), &specs, &n));
    int same = n == c->n_from;
    for (int i = 0; same && i < n; i++)
        same = !strcmp(specs[i].name, c->specs_from[i].name) && specs[i].n[0] == c->specs_from[i].n[0] && specs[i].n[1] == c->specs_from[i].n[1];
    free(specs);
    return same ? OK : fail(ERR_INPUT, "%s: the optimizer's moments belong to another model; remove %s/" MOMENTS_DIR ", or convert with --moments none", path, path);
}

/* ---- one attention tensor ------------------------------------------------------------------------------------------------ */

/* What one merged tensor is made of. */
struct heads { int64_t D, G0, P, m, R, width; const int64_t *members; const double *E; int squared; };

static int64_t member(const struct heads *h, int64_t i) { return h->members ? h->members[i] : i; }
static double entry(double x, int squared) { return squared ? x * x : x; }

/* Rows of K or V: to [P*D, width] = sums over the groups. */
static void sum_heads(float *to, const float *from, const struct heads *h)
{
    int64_t D = h->D, w = h->width;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < h->P * D; r++)
        for (int64_t c = 0; c < w; c++) {
            double sum = 0;
            for (int64_t j = 0; j < h->m; j++) {
                int64_t s = member(h, r / D * h->m + j);
                const float *x = from + s * D * w + c;
                const double *E = h->E ? h->E + s * D * D + r % D : NULL;
                for (int64_t d = 0; E && d < D; d++)
                    sum += entry(E[d * D], h->squared) * (double)x[d * w];
                sum += E ? 0 : (double)x[r % D * w];
            }
            to[r * w + c] = (float)sum;
        }
}

/* B = (1 + r) (E^T E + r e)^-1 E^T. */
static enum code invert(double *B, const double *E, double *room, int64_t D)
{
    double trace = 0;
    mul(room, D, E, D, TRANSPOSED, E, D, PLAIN, D, D, D, 1, 0);
    for (int64_t i = 0; i < D; i++)
        trace += room[i * D + i];
    for (int64_t i = 0; i < D; i++) {
        room[i * D + i] += trace > 0 ? RIDGE * trace / (double)D : 1;
        for (int64_t k = 0; k < D; k++)
            B[i * D + k] = (1 + RIDGE) * E[k * D + i];
    }
    return solve_spd(B, room, D, D);
}

/* Query head `at` of the result comes from head `s` of the source. Element (d, c) of a head lies at d * down + c * right: rows of Q, or
 * columns of O. */
static enum code turn_heads(float *to, const float *from, const struct heads *h, int64_t head, int64_t down, int64_t right, double *room)
{
    int64_t D = h->D;
    for (int64_t i = 0; i < h->G0; i++) {
        int64_t source = member(h, i);
        if (h->E)
            TRY(invert(room, h->E + source * D * D, room + D * D, D));
        for (int64_t r = 0; r < h->R; r++) {
            float *y = to + (i * h->R + r) * head;
            const float *x = from + (source * h->R + r) * head;
#pragma omp parallel for schedule(static)
            for (int64_t c = 0; c < h->width; c++)
                for (int64_t d = 0; d < D; d++) {
                    double sum = 0;
                    for (int64_t k = 0; h->E && k < D; k++)
                        sum += entry(room[d * D + k], h->squared) * (double)x[k * down + c * right];
                    y[d * down + c * right] = h->E ? (float)sum : x[d * down + c * right];
                }
        }
    }
    return OK;
}

static struct heads heads_of(const struct carry *c, const struct tensor_spec *s, int squared)
{
    const struct arch_block *b = &c->plan->from.stack[STACK_DEC].block[s->layer];
    const struct layer_errors *e = &c->out->layers[s->layer];
    int keys = strstr(s->name, ".attn.k.") || strstr(s->name, ".attn.q.");
    struct heads h = {.D = b->D, .G0 = b->G, .P = c->plan->pooled[s->layer], .R = b->H / b->G, .width = s->nd == 2 ? s->n[1] : 1, .squared = squared};
    h.m = h.G0 / h.P;
    h.members = e->members;
    h.E = s->pool == POOL_QKNORM || strstr(s->name, "q_norm") ? NULL : keys ? e->e_k : e->e_v;
    return h;
}

static enum code merge_tensor(struct carry *c, const struct tensor_spec *s, float *to, const float *from, int squared)
{
    struct heads h = heads_of(c, s, squared);
    if (h.E && !c->inverse && !(c->inverse = malloc((size_t)(2 * h.D * h.D) * sizeof *c->inverse)))
        return fail(ERR_MEMORY, "out of memory for a map of %s", s->name);
    if (s->pool == POOL_KV || s->pool == POOL_QKNORM) {
        sum_heads(to, from, &h);
        return OK;
    }
    if (s->pool != POOL_OUT)
        return turn_heads(to, from, &h, h.D * h.width, h.width, 1, c->inverse);
    h.width = s->n[0];
    return turn_heads(to, from, &h, h.D, 1, s->n[1], c->inverse);
}

/* 1 when the tensor's elements are not those of the source's, one for one. */
static int is_merged(const struct carry *c, const struct tensor_spec *s)
{
    if (s->layer < 0 || c->plan->pooled[s->layer] == c->plan->from.stack[STACK_DEC].block[s->layer].G)
        return 0;
    int per_head = c->plan->from.qk_norm != QK_NORM_HEAD;
    return s->pool == POOL_KV || s->pool == POOL_QUERY || s->pool == POOL_OUT || (per_head && (s->pool == POOL_QKNORM || strstr(s->name, ".attn.q_norm.")));
}

/* ---- all of them --------------------------------------------------------------------------------------------------------- */

static const struct tensor_spec *spec_of(const struct tensor_spec *specs, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(specs[i].name, name))
            return &specs[i];
    return NULL;
}

static enum code hold(struct carry *c, const struct step_array *array, const struct tensor_spec *s, const struct tensor_spec *from)
{
    int64_t n[2] = {from->n[0], from->nd == 2 ? from->n[1] : 1};
    float *x = malloc((size_t)(n[0] * n[1]) * sizeof *x);
    free(c->values);
    c->held[0] = 0;
    c->values = malloc((size_t)(array->n[0] * array->n[1]) * sizeof *c->values);
    enum code code = x && c->values ? OK : fail(ERR_MEMORY, "out of memory for the moments of %s", s->name);
    if (code == OK)
        code = step_read_rows(c->from, array->name, n, 0, n[0], x);
    if (code == OK)
        code = merge_tensor(c, s, c->values, x, array->name[0] == 'v');
    if (code == OK)
        snprintf(c->held, sizeof c->held, "%s", array->name);
    free(x);
    return code;
}

static enum code rows_of(void *context, const struct step_array *array, int64_t row, int64_t rows, void *dst)
{
    struct carry *c = context;
    const struct tensor_spec *s = spec_of(c->specs, c->n, array->name + 2), *from = spec_of(c->specs_from, c->n_from, array->name + 2);
    if (!from)
        return fail(ERR_INTERNAL, "no source for the moments of %s", array->name + 2);
    if (!is_merged(c, s))
        return step_read_rows(c->from, array->name, array->n, row, rows, dst);
    if (strcmp(c->held, array->name) != 0)
        TRY(hold(c, array, s, from));
    memcpy(dst, c->values + row * array->n[1], (size_t)(rows * array->n[1]) * sizeof *c->values);
    return OK;
}

enum code carry_open(struct carry **out, const struct plan *plan, const struct options *o, struct outcome *outcome, char *why, size_t n)
{
    struct step_reader *from = NULL;
    int64_t updates = 0;
    int found = 0;
    *out = NULL;
    *why = 0;
    if (o->moments == MOMENTS_NONE)
        return OK;
    TRY(moments_open(&from, o->source, &updates, &found));
    const char *no = found ? obstacle(plan, o) : "the source has none (a run directory of gqa-uptrain has)";
    if (no) {
        snprintf(why, n, "%s", no);
        step_close(from);
        return OK;
    }
    struct carry *c = calloc(1, sizeof *c);
    if (!c) {
        step_close(from);
        return fail(ERR_MEMORY, "out of memory for the optimizer's moments");
    }
    *out = c;
    *c = (struct carry){.from = from, .updates = updates, .plan = plan, .out = outcome, .note = note(plan, o)};
    c->source = (struct step_source){rows_of, c};
    outcome->keep_maps = 1;
    enum code code = list_arrays(c);
    if (code == OK)
        code = same_model(c, o->source);
    if (code != OK) {
        carry_close(c);
        *out = NULL;
    }
    return code;
}

enum code carry_write(struct carry *c, struct ckpt_writer *w, json_t *facts)
{
    const char *target = ckpt_writer_dir(w);
    if (!target)
        return fail(ERR_INTERNAL, "moments for a target that is no directory");
    json_t *meta = json_pack("{s:s, s:{s:I}}", "program", "gqa-convert", "state", "step", (json_int_t)c->updates);
    char *dir = io_join(target, MOMENTS_DIR);
    struct step_content content = {.step = c->updates, .arch = &c->plan->arch, .arrays = c->arrays, .n_arrays = 2 * c->n, .meta = meta};
    enum code code = meta && dir ? step_save(dir, &content, 0) : fail(ERR_MEMORY, "out of memory for the optimizer's moments");
    char name[64], sha[65], *manifest = NULL;
    snprintf(name, sizeof name, MOMENTS_DIR "/step-%08lld/MANIFEST.json", (long long)c->updates);
    if (code == OK && !(manifest = io_join(target, name)))
        code = fail(ERR_MEMORY, "out of memory for a path");
    if (code == OK)
        code = sha256_file(manifest, sha);
    if (code == OK)
        json_object_set_new(facts, "optimizer", json_pack("{s:s, s:s, s:I, s:s}", "manifest", name, "sha256", sha, "updates", (json_int_t)c->updates, "note", c->note));
    if (code == OK)
        log_info("the optimizer's moments of %lld updates are carried: %s", (long long)c->updates, c->note);
    free(manifest);
    free(dir);
    json_decref(meta);
    return code;
}

void carry_close(struct carry *c)
{
    if (!c)
        return;
    step_close(c->from);
    free(c->specs);
    free(c->specs_from);
    free(c->arrays);
    free(c->values);
    free(c->inverse);
    free(c);
}
