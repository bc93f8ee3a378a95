/* Rewritings, the tensor side: a checkpoint whose rows are computed from another's when they are asked for (definitions in rewrite.h).
 * Per tensor there is one recipe: the source's bytes, a constant, or
 *
 *   y[r, c] = (x[r0 + r, c] * fold[c] + sum_k M[r, k] shift[k] + one) * scale - one  minus a mean over the model width
 *
 * with fold and shift the weights and bias of the norm in front (M the matrix whose bias this is), one = 1 for the weights of an RMSNorm
 * that adds 1. Vectors are read once, at the first use of their tensor, and kept; rows pass through blocks of about 1 MiB. The mean over
 * the width is along a row of embed and pos, down the columns of o and down (one extra pass over the matrix), over a whole bias. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "form.h"
#include "rewrite.h"

enum recipe_kind { RECIPE_BYTES, RECIPE_CONSTANT, RECIPE_ROWS };
enum centre_kind { CENTRE_NONE, CENTRE_ROW, CENTRE_COLUMNS, CENTRE_VECTOR };

struct recipe {
    enum recipe_kind kind;
    const struct ckpt_tensor *in; /* of the source; NULL: zeros */
    int64_t row0;
    double constant, scale, one;
    const struct ckpt_tensor *norm_w, *norm_b, *matrix; /* NULL: no fold, no shift */
    double norm_plus;                                   /* 1 when norm_w is stored as w - 1 */
    enum centre_kind centre;
    int ready;
    double *fold, *shift; /* [columns of the matrix] */
    double *mean;         /* [columns], or one */
};

struct rewritten {
    struct checkpoint base;
    struct ckpt_form form; /* ours under the name of the source's form */
    struct checkpoint *source;
    struct recipe *recipes; /* [n_tensors] */
    pthread_mutex_t mutex;  /* of what recipes keep */
};

static int64_t rows_per_block(int64_t columns)
{
    int64_t rows = CKPT_BLOCK_BYTES / (columns * (int64_t)sizeof(double));
    return rows < 1 ? 1 : rows;
}

static double *doubles(int64_t n) { return malloc((size_t)n * sizeof(double)); }

static enum code no_memory(const struct rewritten *w) { return fail(ERR_MEMORY, "%s: out of memory while rewriting", w->base.path); }

/* ---- what a recipe keeps ------------------------------------------------------------------------------------------ */

static enum code vector_load(struct rewritten *w, const struct ckpt_tensor *t, double plus, double **out)
{
    double *v = doubles(t->n[0]);
    if (!v)
        return no_memory(w);
    enum code c = ckpt_read(w->source, t, 0, t->n[0], v, DT_F64);
    for (int64_t i = 0; c == OK && i < t->n[0]; i++)
        v[i] += plus;
    if (c == OK)
        *out = v;
    else
        free(v);
    return c;
}

static enum code means_down(struct rewritten *w, const struct ckpt_tensor *t, double **out)
{
    int64_t columns = t->n[1], step = rows_per_block(columns);
    double *mean = calloc((size_t)columns, sizeof *mean), *x = doubles(step * columns);
    enum code c = mean && x ? OK : no_memory(w);
    for (int64_t row = 0; c == OK && row < t->n[0]; row += step) {
        int64_t rows = t->n[0] - row < step ? t->n[0] - row : step;
        c = ckpt_read(w->source, t, row, rows, x, DT_F64);
        for (int64_t r = 0; c == OK && r < rows; r++)
            for (int64_t k = 0; k < columns; k++)
                mean[k] += x[r * columns + k];
    }
    for (int64_t k = 0; c == OK && k < columns; k++)
        mean[k] /= (double)t->n[0];
    free(x);
    if (c == OK)
        *out = mean;
    else
        free(mean);
    return c;
}

static enum code recipe_load(struct rewritten *w, struct recipe *r)
{
    if (r->norm_w && !r->fold)
        TRY(vector_load(w, r->norm_w, r->norm_plus, &r->fold));
    if (r->norm_b && !r->shift)
        TRY(vector_load(w, r->norm_b, 0, &r->shift));
    if ((r->centre == CENTRE_COLUMNS || r->centre == CENTRE_VECTOR) && !r->mean)
        TRY(means_down(w, r->in, &r->mean));
    r->ready = 1;
    return OK;
}

static enum code recipe_ready(struct rewritten *w, struct recipe *r)
{
    pthread_mutex_lock(&w->mutex);
    enum code c = r->ready ? OK : recipe_load(w, r);
    pthread_mutex_unlock(&w->mutex);
    return c;
}

/* ---- rows --------------------------------------------------------------------------------------------------------- */

/* x[r] += row (row + r) of the matrix times shift. */
static enum code add_shift(struct rewritten *w, const struct recipe *r, int64_t row, int64_t rows, double *x)
{
    int64_t columns = r->matrix->n[1], step = rows_per_block(columns);
    double *m = doubles(step * columns);
    enum code c = m ? OK : no_memory(w);
    for (int64_t done = 0; c == OK && done < rows; done += step) {
        int64_t now = rows - done < step ? rows - done : step;
        c = ckpt_read(w->source, r->matrix, row + done, now, m, DT_F64);
        for (int64_t i = 0; c == OK && i < now; i++) {
            double sum = 0;
            for (int64_t k = 0; k < columns; k++)
                sum += m[i * columns + k] * r->shift[k];
            x[done + i] += sum;
        }
    }
    free(m);
    return c;
}

static void centre_rows(const struct recipe *r, int64_t rows, int64_t columns, double *x)
{
    for (int64_t i = 0; i < rows; i++) {
        double mean = 0;
        for (int64_t k = 0; r->centre == CENTRE_ROW && k < columns; k++)
            mean += x[i * columns + k];
        mean /= (double)columns;
        for (int64_t k = 0; k < columns; k++)
            x[i * columns + k] -= r->centre == CENTRE_ROW ? mean : r->centre == CENTRE_COLUMNS ? r->mean[k] : r->mean[0];
    }
}

static enum code rows_compute(struct rewritten *w, const struct recipe *r, int64_t row, int64_t rows, int64_t columns, double *x)
{
    if (r->in)
        TRY(ckpt_read(w->source, r->in, r->row0 + row, rows, x, DT_F64));
    else
        memset(x, 0, (size_t)(rows * columns) * sizeof *x);
    for (int64_t i = 0; r->fold && i < rows; i++)
        for (int64_t k = 0; k < columns; k++)
            x[i * columns + k] *= r->fold[k];
    if (r->shift)
        TRY(add_shift(w, r, row, rows, x));
    for (int64_t i = 0; i < rows * columns; i++)
        x[i] = (x[i] + r->one) * r->scale - r->one;
    if (r->centre != CENTRE_NONE)
        centre_rows(r, rows, columns, x);
    return OK;
}

static enum code rewritten_read_as(struct checkpoint *ck, int i, int64_t row, int64_t rows, void *dst, enum dtype as)
{
    struct rewritten *w = (struct rewritten *)ck;
    struct recipe *r = &w->recipes[i];
    if (r->kind == RECIPE_BYTES)
        return ckpt_read(w->source, r->in, r->row0 + row, rows, dst, as);
    if (r->kind == RECIPE_ROWS)
        TRY(recipe_ready(w, r));
    int64_t columns = ck->tensors[i].n[1], step = rows_per_block(columns);
    step = step < rows ? step : rows;
    double *x = doubles(step * columns);
    enum code c = x ? OK : no_memory(w);
    for (int64_t done = 0; c == OK && done < rows; done += step) {
        int64_t now = rows - done < step ? rows - done : step;
        for (int64_t k = 0; r->kind == RECIPE_CONSTANT && k < now * columns; k++)
            x[k] = r->constant;
        if (r->kind == RECIPE_ROWS)
            c = rows_compute(w, r, row + done, now, columns, x);
        if (c == OK)
            convert_elements((char *)dst + (size_t)(done * columns) * dtype_bytes(as), as, x, DT_F64, (size_t)(now * columns));
    }
    free(x);
    return c;
}

static enum code rewritten_read(struct checkpoint *ck, int i, int64_t row, int64_t rows, void *dst)
{
    return rewritten_read_as(ck, i, row, rows, dst, ck->tensors[i].dtype);
}

static void rewritten_close(struct checkpoint *ck)
{
    struct rewritten *w = (struct rewritten *)ck;
    for (int i = 0; w->recipes && i < ck->n_tensors; i++) {
        free(w->recipes[i].fold);
        free(w->recipes[i].shift);
        free(w->recipes[i].mean);
    }
    free(w->recipes);
    pthread_mutex_destroy(&w->mutex);
    ckpt_close(w->source);
}

/* ---- recipes ------------------------------------------------------------------------------------------------------ */

static const struct ckpt_tensor *of_layer(const struct rewritten *w, int64_t layer, const char *name)
{
    char canonical[64];
    snprintf(canonical, sizeof canonical, "dec.%lld.%s", (long long)layer, name);
    return ckpt_find(w->source, canonical);
}

/* The norm in front of a matrix of the block, and for a bias the matrix it belongs to. */
static void recipe_fold(const struct rewritten *w, struct recipe *r, const struct tensor_spec *s)
{
    static const struct { enum tensor_slot slot; const char *matrix; int mlp, bias; } readers[] = {
        {T_Q_W, "attn.q.w", 0, 0}, {T_K_W, "attn.k.w", 0, 0}, {T_V_W, "attn.v.w", 0, 0}, {T_GATE_W, "mlp.gate.w", 1, 0}, {T_UP_W, "mlp.up.w", 1, 0},
        {T_Q_B, "attn.q.w", 0, 1}, {T_K_B, "attn.k.w", 0, 1}, {T_V_B, "attn.v.w", 0, 1}, {T_GATE_B, "mlp.gate.w", 1, 1}, {T_UP_B, "mlp.up.w", 1, 1}};
    for (size_t i = 0; i < sizeof readers / sizeof *readers; i++) {
        if (readers[i].slot != s->slot)
            continue;
        int mlp = readers[i].mlp && w->source->arch.residual != RESIDUAL_PARALLEL_ONE_NORM;
        if (!readers[i].bias) {
            r->norm_w = of_layer(w, s->layer, mlp ? "mlp_norm.w" : "attn_norm.w");
            r->norm_plus = w->source->arch.norm == NORM_RMS1P ? 1 : 0;
        } else {
            r->norm_b = of_layer(w, s->layer, mlp ? "mlp_norm.b" : "attn_norm.b");
            r->matrix = of_layer(w, s->layer, readers[i].matrix);
        }
        if (r->norm_w || r->norm_b)
            r->kind = RECIPE_ROWS;
    }
}

static void recipe_centre(struct recipe *r, enum tensor_slot slot)
{
    switch (slot) {
    case T_EMBED: case T_POS: r->centre = CENTRE_ROW; break;
    case T_O_W: case T_DOWN_W: r->centre = CENTRE_COLUMNS; break;
    case T_O_B: case T_DOWN_B: r->centre = CENTRE_VECTOR; break;
    default: return;
    }
    if (r->in)
        r->kind = RECIPE_ROWS;
    else
        r->centre = CENTRE_NONE; /* zeros have mean zero */
}

static void recipe_scale_q(const struct rewritten *w, struct recipe *r, const struct tensor_spec *s)
{
    const struct arch *a = &w->source->arch;
    int norm = a->qk_norm != QK_NORM_NONE;
    if (norm ? s->slot != T_Q_NORM_W : s->slot != T_Q_W && s->slot != T_Q_B)
        return;
    double own = a->stack[STACK_DEC].block[s->layer].scale;
    r->scale = (own > 0 ? own : a->attn_scale) / w->base.arch.attn_scale;
    r->one = norm && a->norm == NORM_RMS1P ? 1 : 0;
    if (r->kind == RECIPE_BYTES)
        r->kind = RECIPE_ROWS;
}

static int is_norm_weight(enum tensor_slot slot) { return slot == T_ATTN_NORM_W || slot == T_MLP_NORM_W || slot == T_FINAL_NORM_W; }
static int is_folded_norm(enum tensor_slot s) { return s == T_ATTN_NORM_W || s == T_MLP_NORM_W || s == T_ATTN_NORM_B || s == T_MLP_NORM_B; }

static enum code recipe_make(const struct rewritten *w, struct recipe *r, const struct tensor_spec *s, unsigned steps)
{
    r->scale = 1;
    r->in = ckpt_find(w->source, s->name);
    if (!r->in && s->slot == T_HEAD_W)
        r->in = ckpt_find(w->source, "embed.weight");
    r->kind = r->in ? RECIPE_BYTES : RECIPE_CONSTANT;
    r->constant = is_norm_weight(s->slot) ? 1 : 0;
    if (s->slot == T_POS && steps & REWRITE_POS_OFFSET)
        r->row0 = w->source->arch.pos_offset;
    if (steps & REWRITE_FOLD_NORMS) {
        recipe_fold(w, r, s);
        if (is_folded_norm(s->slot)) {
            r->kind = RECIPE_CONSTANT;
            r->constant = is_norm_weight(s->slot) && w->source->arch.norm != NORM_RMS1P ? 1 : 0;
        }
    }
    if (steps & REWRITE_CENTRE)
        recipe_centre(r, s->slot);
    if (steps & REWRITE_SCALE_Q)
        recipe_scale_q(w, r, s);
    if (r->in && r->kind != RECIPE_CONSTANT && (r->in->n[0] < r->row0 + s->n[0] || r->in->n[1] != s->n[1]))
        return fail(ERR_INTERNAL, "%s: rewriting %s: the source's shape does not fit", w->base.path, s->name);
    if (!r->in && r->kind == RECIPE_CONSTANT && s->nd == 2)
        return fail(ERR_INTERNAL, "%s: rewriting: there is no source for %s", w->base.path, s->name);
    return OK;
}

/* ---- opening ------------------------------------------------------------------------------------------------------ */

struct entry { struct ckpt_tensor tensor; struct recipe recipe; int key; };

static int by_source(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    return x->key != y->key ? (x->key < y->key ? -1 : 1) : strcmp(x->tensor.name, y->tensor.name);
}

/* Tensors in the order of what they are read from; what is new comes last. */
static enum code entries_make(struct rewritten *w, const struct tensor_spec *specs, struct entry *entries, unsigned steps)
{
    const struct ckpt_tensor *first = ckpt_find(w->source, "embed.weight");
    for (int i = 0; i < w->base.n_tensors; i++) {
        struct recipe *r = &entries[i].recipe;
        TRY(recipe_make(w, r, &specs[i], steps));
        const struct ckpt_tensor *like = r->in;
        TRY(form_tensor_set(&w->base, i, like ? like->dtype : first->dtype, like ? like->source : "", like ? like->file : ""));
        entries[i].tensor = w->base.tensors[i];
        entries[i].key = like ? (int)(like - w->source->tensors) : w->source->n_tensors;
    }
    qsort(entries, (size_t)w->base.n_tensors, sizeof *entries, by_source);
    for (int i = 0; i < w->base.n_tensors; i++) {
        w->base.tensors[i] = entries[i].tensor;
        w->recipes[i] = entries[i].recipe;
    }
    return OK;
}

static enum code tensors_make(struct rewritten *w, unsigned steps)
{
    struct tensor_spec *specs;
    int n;
    TRY(form_tensors(&w->base));
    TRY(arch_tensors(&w->base.arch, &specs, &n));
    CHECK(n == w->base.n_tensors);
    w->recipes = calloc((size_t)n, sizeof *w->recipes);
    struct entry *entries = calloc((size_t)n, sizeof *entries);
    enum code c = w->recipes && entries ? entries_make(w, specs, entries, steps) : no_memory(w);
    free(entries);
    free(specs);
    return c;
}

static enum code parts_make(struct rewritten *w, unsigned steps, const char *family)
{
    const struct checkpoint *source = w->source;
    struct arch *a = &w->base.arch;
    steps = rewrite_needed(&source->arch, steps);
    TRY(arch_copy(a, &source->arch));
    TRY(rewrite_arch(a, steps));
    if (*family) {
        snprintf(a->family, sizeof a->family, "%s", family);
        free(a->source_config);
        a->source_config = NULL;
    }
    for (int i = 0; i < source->n_companions; i++)
        TRY(form_add_companion(&w->base.companions, &w->base.n_companions, source->companions[i].name, source->companions[i].bytes,
                               source->companions[i].n));
    for (int i = 0; i < source->n_files; i++)
        TRY(form_add_fileref(&w->base, source->files[i]));
    TRY(tensors_make(w, steps));
    return form_index(&w->base);
}

enum code rewrite_open(struct checkpoint **out, struct checkpoint *source, unsigned steps, const char *family)
{
    static const struct ckpt_form form = {.read = rewritten_read, .read_as = rewritten_read_as, .close = rewritten_close};
    *out = NULL;
    enum code c = form_checkpoint_new(out, sizeof(struct rewritten), &form, source->path);
    if (c != OK) {
        ckpt_close(source);
        return c;
    }
    struct rewritten *w = (struct rewritten *)*out;
    w->form = form;
    w->form.name = source->form->name;
    w->base.form = &w->form;
    w->source = source;
    pthread_mutex_init(&w->mutex, NULL);
    c = parts_make(w, steps, family);
    if (c != OK) {
        ckpt_close(*out);
        *out = NULL;
    }
    return c;
}
