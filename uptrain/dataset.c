/* The files of a run as two orders of samples: training (shuffled by seed and epoch) and validation (file order). Document ends
 * and the tokenizer come from data.tokenizer, else from the model's own files. */
#include <stdlib.h>
#include <string.h>

#include "run.h"

static const char *at(const struct options *o, const char *key)
{
    return config_where(o->config, config_root(o->config), key);
}

static const char *item(const struct config_list *list, int i)
{
    return ((const char *const *)list->items)[i];
}

/* A path that cannot be read is refused when it is opened, not here. */
static int is_text(const struct options *o, const char *path)
{
    enum data_format f = (enum data_format)o->data.format;
    if (f == DATA_AUTO && data_detect_format(path, &f) != OK)
        return 0;
    return f == DATA_TEXT || f == DATA_JSONL;
}

static int reads_text(const struct options *o)
{
    for (int i = 0; i < o->data.train.n; i++)
        if (is_text(o, item(&o->data.train, i)))
            return 1;
    for (int i = 0; i < o->data.validation.n; i++)
        if (is_text(o, item(&o->data.validation, i)))
            return 1;
    return 0;
}

static enum code tokenizer_of_model(struct dataset *d, const struct options *o, struct checkpoint *source)
{
    if (!source)
        return fail(ERR_USAGE, "%s: a new model has no tokenizer; set data.tokenizer to a path or to bytes", at(o, "data.tokenizer"));
    return fail_in(model_tokenizer(&d->tokenizer, source), "%s: data.tokenizer", at(o, "data.tokenizer"));
}

enum code dataset_tokenizer(struct dataset *d, const struct options *o, struct checkpoint *source)
{
    const char *name = o->data.tokenizer;
    d->bos = d->eos = -1;
    if (!name && !reads_text(o))
        return OK;
    if (!name || !strcmp(name, "model"))
        TRY(tokenizer_of_model(d, o, source));
    else
        TRY(tokenizer_open(&d->tokenizer, name));
    d->bos = tokenizer_bos(d->tokenizer);
    d->eos = tokenizer_eos(d->tokenizer);
    return OK;
}

static enum code open_list(const struct options *o, const struct config_list *list, const struct tokens_options *t, int eos,
                           struct tokens ***out, int *n, struct sampler *order, int shuffle, const char *key)
{
    *out = calloc((size_t)list->n + 1, sizeof **out);
    if (!*out)
        return fail(ERR_MEMORY, "out of memory for %d data files", list->n);
    for (int i = 0; i < list->n; i++) {
        enum code c = tokens_open(&(*out)[i], item(list, i), t);
        if (c != OK)
            return fail_in(c, "%s", key);
        *n = i + 1;
    }
    *order = (struct sampler){.files = *out, .n_files = *n, .T = o->sequence_len, .eos = eos, .pack = o->data.pack && eos >= 0,
                              .shuffle = shuffle, .seed = (uint64_t)o->seed, .windows = 0};
    return fail_in(sampler_init(order), "%s, sequence_len %lld", key, (long long)o->sequence_len);
}

enum code dataset_open(struct dataset *d, const struct options *o, const struct arch *arch, const char *cache_dir)
{
    static const enum dtype widths[] = {DT_NONE, DT_U16, DT_I32};
    if (d->eos < 0)
        d->eos = arch->eos;
    if (d->bos < 0)
        d->bos = arch->bos;
    struct tokens_options t = {.format = (enum data_format)o->data.format, .dtype = widths[o->data.dtype], .V = arch->V, .eos = d->eos,
                               .bos = d->bos, .text_field = o->data.text_field, .tokenizer = d->tokenizer, .cache_dir = cache_dir};
    if (o->data.pack && d->eos < 0)
        log_info("data: no end-of-document id is known, so each file is one document");
    TRY(open_list(o, &o->data.train, &t, d->eos, &d->train, &d->n_train, &d->train_order, 1, "data.train"));
    if (o->data.validation.n == 0)
        return OK;
    TRY(open_list(o, &o->data.validation, &t, d->eos, &d->validation, &d->n_validation, &d->validation_order, 0, "data.validation"));
    int64_t wanted;
    d->eval_windows = d->validation_order.windows;
    if (o->eval_batches > 0 && checked_mul(o->eval_batches, o->micro_batch_size, &wanted) && wanted < d->eval_windows)
        d->eval_windows = wanted;
    return OK;
}

void dataset_close(struct dataset *d)
{
    for (int i = 0; i < d->n_train; i++)
        tokens_close(d->train[i]);
    for (int i = 0; i < d->n_validation; i++)
        tokens_close(d->validation[i]);
    free(d->train);
    free(d->validation);
    tokenizer_close(d->tokenizer);
    memset(d, 0, sizeof *d);
}

static json_t *list_json(struct tokens *const *files, int n, const struct config_list *paths)
{
    json_t *a = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(a, json_pack("{s:s, s:s, s:I}", "path", item(paths, i), "sha256", tokens_sha256(files[i]), "tokens",
                                           (json_int_t)tokens_count(files[i])));
    return a;
}

json_t *dataset_to_json(const struct dataset *d, const struct options *o)
{
    return json_pack("{s:o, s:o, s:s?, s:i, s:i}", "train", list_json(d->train, d->n_train, &o->data.train), "validation",
                     list_json(d->validation, d->n_validation, &o->data.validation), "tokenizer",
                     d->tokenizer ? tokenizer_sha256(d->tokenizer) : NULL, "bos", d->bos, "eos", d->eos);
}
