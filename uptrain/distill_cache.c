/* The teacher's most likely tokens of the samples a run sees, computed before it starts (data/teacher_cache.h has the file). The samples are
 * windows of the data, whatever the seed and the order, so runs with other seeds or budgets find in the same file what others computed
 * and add what is missing. */
#include <stdlib.h>
#include <string.h>

#include "run.h"
#include "signals.h"

/* facts of the file; NULL when out of memory. Caller json_decref's. */
static json_t *make_facts(const struct run *r)
{
    const struct options *o = &r->options;
    const struct sampler *s = &r->data.train_order;
    struct model_options m = distill_model_options(r);
    json_t *hashes = json_array(), *counts = json_array(), *paths = json_array();
    for (int i = 0; i < r->data.n_train; i++) {
        json_array_append_new(hashes, json_string(tokens_sha256(r->data.train[i])));
        json_array_append_new(counts, json_integer(tokens_count(r->data.train[i])));
        json_array_append_new(paths, json_string(((const char *const *)o->data.train.items)[i]));
    }
    return json_pack("{s:{s:s, s:o, s:o, s:s?, s:i, s:i, s:I, s:b, s:f, s:I, s:I, s:s}, s:{s:s, s:o, s:s}}", "key", "teacher", r->distill.hash, "data",
                     hashes, "tokens", counts, "tokenizer", r->data.tokenizer ? tokenizer_sha256(r->data.tokenizer) : NULL, "bos", r->data.bos, "eos",
                     s->eos, "sequence_len", (json_int_t)o->sequence_len, "pack", s->pack, "temperature", o->distill.temperature, "top_k",
                     (json_int_t)o->distill.top_k, "vocabulary", (json_int_t)r->arch.V, "weights", dtype_name(m.dtype), "about", "teacher",
                     o->distill.teacher, "data", paths, "version", GQAKIT_VERSION);
}

static struct teacher_about about_of(const struct run *r, const json_t *facts)
{
    return (struct teacher_about){r->options.distill.top_k, r->options.sequence_len, r->arch.V, r->data.train_order.windows, facts};
}

static enum code name_in(char **out, const char *dir, const json_t *facts)
{
    char *text = json_text(json_object_get(facts, "key"), JSON_COMPACT | JSON_SORT_KEYS), hex[65], name[48];
    if (!text)
        return fail(ERR_MEMORY, "out of memory for the name of a cache");
    sha256_of(text, strlen(text), hex);
    free(text);
    snprintf(name, sizeof name, "teacher-%.16s.topk", hex);
    *out = io_join(dir, name);
    return *out ? OK : fail(ERR_MEMORY, "out of memory for a path");
}

static int is_directory(const char *path)
{
    size_t n = strlen(path);
    return io_is_dir(path) || (n > 0 && path[n - 1] == '/');
}

static enum code choose_path(struct run *r, const json_t *facts)
{
    const char *asked = r->options.distill.cache;
    char *dir = asked ? strdup(asked) : io_join(r->options.output_dir, "cache");
    enum code c = dir ? OK : fail(ERR_MEMORY, "out of memory for a path");
    if (c == OK && asked && !is_directory(dir)) {
        r->distill.cache_path = dir;
        return OK;
    }
    if (c == OK)
        c = name_in(&r->distill.cache_path, dir, facts);
    free(dir);
    return c;
}

enum code distill_cache_path(struct run *r)
{
    if (!r->distill.checkpoint || r->options.distill.top_k == 0)
        return OK;
    json_t *facts = make_facts(r);
    enum code c = facts ? choose_path(r, facts) : fail(ERR_MEMORY, "out of memory for the description of a cache");
    json_decref(facts);
    return c;
}

/* One byte per window: 1 for those this run sees. */
static enum code windows_seen(const struct run *r, unsigned char **seen, int64_t *n)
{
    const struct sampler *s = &r->data.train_order;
    int64_t samples, all = s->windows;
    *n = 0;
    *seen = calloc((size_t)all + 1, 1);
    if (!*seen)
        return fail(ERR_MEMORY, "out of memory for a list of %lld samples", (long long)all);
    if (!checked_mul(r->budget.steps, r->options.global_batch_size, &samples) || samples > all)
        samples = all; /* a whole epoch is every window once */
    for (int64_t i = 0; i < samples; i++)
        (*seen)[sampler_window(s, i)] = 1;
    *n = samples;
    return OK;
}

/* Takes from `seen` what the file at the path already holds. */
static enum code leave_out(const struct run *r, const struct teacher_about *about, unsigned char *seen, int64_t *missing)
{
    struct teacher_cache *c;
    if (!io_exists(r->distill.cache_path))
        return OK;
    TRY(teacher_cache_open(&c, r->distill.cache_path));
    enum code e = teacher_about_same(teacher_cache_about(c), about, r->distill.cache_path);
    for (int64_t w = 0; e == OK && w < about->windows; w++)
        if (seen[w] && teacher_cache_has(c, w)) {
            seen[w] = 0;
            --*missing;
        }
    teacher_cache_close(c);
    return e;
}

/* The windows still to be computed. *facts and *seen are the caller's. */
static enum code find_missing(struct run *r, json_t **facts, unsigned char **seen, struct distill_need *n)
{
    *seen = NULL;
    *facts = make_facts(r);
    if (!*facts)
        return fail(ERR_MEMORY, "out of memory for the description of a cache");
    struct teacher_about about = about_of(r, *facts);
    TRY(windows_seen(r, seen, &n->windows));
    n->missing = n->windows;
    TRY(leave_out(r, &about, *seen, &n->missing));
    n->bytes = teacher_raw_bytes(&about, n->missing);
    return OK;
}

enum code distill_cache_need(struct run *r, struct distill_need *n)
{
    json_t *facts;
    unsigned char *seen;
    memset(n, 0, sizeof *n);
    if (!r->distill.cache_path)
        return OK;
    enum code c = find_missing(r, &facts, &seen, n);
    free(seen);
    json_decref(facts);
    return c;
}

/* ---- computing ---- */

struct maker {
    struct run *r;
    struct model *teacher;
    struct sampler order; /* the windows in file order */
    struct batch batch;
    int64_t *window;      /* of the rows collected */
    int64_t rows, done;
    int32_t *ids;
    float *logp;
    struct teacher_writer *writer;
    struct progress progress;
};

static enum code maker_open(struct maker *k, struct run *r, const struct teacher_about *about)
{
    struct model_options m = distill_model_options(r);
    int64_t B = r->options.micro_batch_size, n = B * about->T * about->K;
    memset(k, 0, sizeof *k);
    k->r = r;
    k->order = r->data.train_order;
    k->order.shuffle = 0;
    k->window = calloc((size_t)B, sizeof *k->window);
    k->ids = malloc((size_t)n * sizeof *k->ids);
    k->logp = malloc((size_t)n * sizeof *k->logp);
    if (!k->window || !k->ids || !k->logp)
        return fail(ERR_MEMORY, "out of memory for what the teacher says of %lld samples", (long long)B);
    TRY(batch_alloc(&k->batch, B, about->T));
    TRY(fail_in(model_open(&k->teacher, ckpt_arch(r->distill.checkpoint), r->backend, r->device, &m), "distill.teacher"));
    TRY(model_load(k->teacher, r->distill.checkpoint));
    return teacher_writer_open(&k->writer, r->distill.cache_path, about);
}

static void maker_close(struct maker *k)
{
    teacher_writer_close(k->writer);
    model_close(k->teacher);
    batch_free(&k->batch);
    free(k->window);
    free(k->ids);
    free(k->logp);
}

/* The rows collected so far: computed and written. */
static enum code flush(struct maker *k)
{
    const struct options *o = &k->r->options;
    int64_t T = o->sequence_len, K = o->distill.top_k;
    struct batch b = k->batch;
    b.B = k->rows;
    if (k->rows == 0)
        return OK;
    TRY(model_topk(k->teacher, &b, (float)o->distill.temperature, view_2d(k->ids, DT_I32, b.B * T, K), view_2d(k->logp, DT_F32, b.B * T, K)));
    for (int64_t i = 0; i < k->rows; i++)
        TRY(teacher_writer_add(k->writer, k->window[i], k->ids + i * T * K, k->logp + i * T * K));
    k->done += k->rows;
    k->rows = 0;
    progress_update(&k->progress, k->done, NULL);
    return OK;
}

static enum code collect(struct maker *k, int64_t window)
{
    int64_t from = k->rows * k->batch.T;
    struct batch row = {1, k->batch.T, k->batch.ids + from, k->batch.targets + from, k->batch.positions + from, k->batch.segments + from};
    sampler_fill(&k->order, window, &row);
    k->window[k->rows++] = window;
    return k->rows == k->batch.B ? flush(k) : OK;
}

static enum code compute(struct maker *k, const unsigned char *seen, int64_t missing)
{
    enum code c = OK;
    progress_begin(&k->progress, "teacher", missing);
    for (int64_t w = 0; c == OK && w < k->order.windows; w++) {
        if (!seen[w])
            continue;
        if (signals_stop())
            c = fail(ERR_STOPPED, "stopped by signal %d while the teacher's tokens were computed: %lld of %lld samples are kept; the same command continues",
                     signals_stop(), (long long)k->done, (long long)missing);
        else if (teacher_writer_has(k->writer, w)) /* an interrupted run's */
            k->done++;
        else
            c = collect(k, w);
    }
    if (c == OK)
        c = flush(k);
    progress_end(&k->progress);
    return c == OK ? teacher_writer_commit(k->writer) : c;
}

/* Directories on the way to the file. */
static enum code make_folder(const char *path)
{
    char *dir = strdup(path), *slash = dir ? strrchr(dir, '/') : NULL;
    enum code c = dir ? OK : fail(ERR_MEMORY, "out of memory for a path");
    if (slash && slash != dir) {
        *slash = 0;
        c = io_mkdirs(dir);
    }
    free(dir);
    return c;
}

enum code distill_cache_make(struct run *r)
{
    struct distill *d = &r->distill;
    struct distill_need n;
    struct maker k;
    json_t *facts;
    unsigned char *seen;
    if (!d->cache_path)
        return OK;
    enum code c = find_missing(r, &facts, &seen, &n);
    if (c == OK && n.missing == 0 && io_exists(d->cache_path))
        log_info("distill: %s holds all %lld samples", d->cache_path, (long long)n.windows);
    else if (c == OK && (c = make_folder(d->cache_path)) == OK) {
        struct teacher_about about = about_of(r, facts);
        log_info("distill: the %lld most likely tokens of %lld samples (%lld are there) into %s", (long long)about.K, (long long)n.missing,
                 (long long)(n.windows - n.missing), d->cache_path);
        c = maker_open(&k, r, &about);
        if (c == OK)
            c = compute(&k, seen, n.missing);
        maker_close(&k);
    }
    free(seen);
    json_decref(facts);
    return c;
}
