/* The end of a run: output_dir/final/, a Hugging Face directory. Tensors in the writer's order, the source's names, config and
 * companions carried on; a model card and PROVENANCE.json say where it comes from. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

static const char *base_name(const char *path)
{
    static char name[256];
    snprintf(name, sizeof name, "%s", path);
    size_t n = strlen(name);
    while (n > 1 && name[n - 1] == '/')
        name[--n] = 0;
    const char *slash = strrchr(name, '/');
    return slash && slash[1] ? slash + 1 : name;
}

static json_t *real(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static enum code files_of(const struct checkpoint *ck, json_t *out)
{
    const char *const *names;
    const char *path = ckpt_path(ck);
    int n = ckpt_files(ck, &names);
    for (int i = 0; i < n; i++) {
        char hex[65], *file = io_is_dir(path) ? io_join(path, names[i]) : strdup(path);
        enum code c = file ? sha256_file(file, hex) : fail(ERR_MEMORY, "%s: out of memory while hashing", path);
        free(file);
        TRY(c);
        json_array_append_new(out, json_pack("{s:s, s:s}", "path", names[i], "sha256", hex));
    }
    return OK;
}

/* What the converted directory says of itself stays readable after it is gone. */
static json_t *source_provenance(const struct run *r)
{
    json_t *j = NULL;
    char *path = r->source ? io_join(ckpt_path(r->source), "PROVENANCE.json") : NULL;
    if (path && io_exists(path) && json_read_file(path, 1 << 20, &j) != OK)
        j = NULL;
    free(path);
    return j ? j : json_null();
}

static enum code facts_make(const struct run *r, json_t **facts)
{
    const struct progress_state *s = &r->state;
    json_t *files = json_array(), *config = options_to_json(&r->options);
    enum code c = r->source ? files_of(r->source, files) : OK;
    json_t *teacher = distill_to_json(r), *taught = json_array();
    if (c == OK && r->distill.checkpoint)
        c = files_of(r->distill.checkpoint, taught);
    json_object_set_new(teacher, "files", taught);
    char *text = json_text(config, JSON_COMPACT | JSON_SORT_KEYS), hex[65] = "";
    if (text)
        sha256_of(text, strlen(text), hex);
    free(text);
    *facts = json_pack("{s:s, s:s, s:{s:s?, s:o}, s:o, s:s, s:o, s:I, s:I, s:I, s:o, s:o, s:o, s:i, s:s, s:o, s:o}", "program", "gqa-uptrain",
                       "version", GQAKIT_VERSION, "source", "path", r->options.model_path, "files", files, "config", config,
                       "config_sha256", hex, "data", dataset_to_json(&r->data, &r->options), "steps", (json_int_t)s->step, "tokens",
                       (json_int_t)s->tokens, "skipped", (json_int_t)s->skips, "loss_before", real(s->loss_zero), "loss_after",
                       real(s->loss_eval), "train_loss", real(s->loss), "threads", host_threads(), "isa", host_isa_name(host_isa()),
                       "distill", teacher, "source_provenance", source_provenance(r));
    if (c == OK && !*facts)
        c = fail(ERR_MEMORY, "out of memory for the provenance");
    return c;
}

static enum code card_make(const struct run *r, const json_t *facts, char **card, size_t *n)
{
    const struct options *o = &r->options;
    const struct progress_state *s = &r->state;
    char *inherited = r->source ? card_inherited(r->source) : strdup("");
    FILE *f = inherited ? open_memstream(card, n) : NULL;
    if (!f) {
        free(inherited);
        return fail(ERR_MEMORY, "out of memory for the model card");
    }
    const struct arch_block *b = r->arch.stack[STACK_DEC].block;
    int64_t L = r->arch.stack[STACK_DEC].L, fewer = 0, uneven = 0;
    for (int64_t l = 0; l < L; l++) {
        fewer |= b[l].G < b[l].H;
        uneven |= b[l].G != b->G;
    }
    fprintf(f, "---\n%s", inherited);
    free(inherited);
    if (o->model_path)
        fprintf(f, "base_model: %s\nbase_model_relation: finetune\n", base_name(o->model_path));
    fprintf(f, "library_name: transformers\npipeline_tag: text-generation\ntags:\n- gqakit\n");
    if (fewer)
        fprintf(f, "- gqa\n");
    if (options_converts(o))
        fprintf(f, "- %s-pool\n", o->gqa.method);
    fprintf(f, "---\n\n# %s\n\n", base_name(o->output_dir));
    if (o->model_path)
        fprintf(f, "%s, trained further by gqa-uptrain %s.", base_name(o->model_path), GQAKIT_VERSION);
    else
        fprintf(f, "Trained from random weights by gqa-uptrain %s.", GQAKIT_VERSION);
    if (uneven) {
        fprintf(f, " %lld query heads; key/value heads by layer:", (long long)b->H);
        for (int64_t l = 0; l < L; l++)
            fprintf(f, " %lld", (long long)b[l].G);
        fprintf(f, ".\n");
    } else
        fprintf(f, " %lld query heads, %lld key/value head%s per layer.\n", (long long)b->H, (long long)b->G, b->G == 1 ? "" : "s");
    fprintf(f, "\nHome: %s.\n\n| | |\n|---|---|\n", r->home.sentence);
    fprintf(f, "| steps | %lld |\n| tokens | %lld |\n", (long long)s->step, (long long)s->tokens);
    if (!isnan(o->uptrain_fraction))
        fprintf(f, "| share of the original tokens | %g |\n", o->uptrain_fraction);
    if (isfinite(s->loss_zero))
        fprintf(f, "| validation loss before (nats/token) | %.4f |\n", s->loss_zero);
    if (isfinite(s->loss_eval))
        fprintf(f, "| validation loss after (nats/token) | %.4f |\n", s->loss_eval);
    distill_card(r, f);
    fprintf(f, "| skipped steps | %lld |\n| config sha256 | %s |\n\n", (long long)s->skips,
            json_string_value(json_object_get(facts, "config_sha256")));
    char *yaml = config_json_to_yaml(json_object_get(facts, "config"));
    fprintf(f, "PROVENANCE.json holds the hashes of every input and output. The configuration:\n\n```yaml\n%s```\n", yaml ? yaml : "");
    free(yaml);
    return fclose(f) == 0 ? OK : fail(ERR_MEMORY, "out of memory for the model card");
}

/* A new model has no companions to carry: the tokenizer it was trained with goes along. */
static enum code add_tokenizer(const struct run *r, struct ckpt_writer *w)
{
    const char *name = r->options.data.tokenizer;
    if (r->source || !name || !r->data.tokenizer || !strcmp(name, "bytes"))
        return OK;
    char *path = io_is_dir(name) ? io_join(name, "tokenizer.json") : strdup(name), *bytes = NULL;
    size_t n = 0;
    enum code c = path ? OK : fail(ERR_MEMORY, "out of memory for a path");
    if (c == OK && io_exists(path))
        c = io_read_all(path, (size_t)256 << 20, &bytes, &n);
    if (c == OK && bytes)
        c = ckpt_add_file(w, "tokenizer.json", bytes, n);
    free(bytes);
    free(path);
    return c;
}

/* Row blocks of 8 MiB where the host cannot read the model's memory. */
static enum code write_tensor(const struct run *r, struct ckpt_writer *w, const struct ckpt_tensor *t, const struct model_param *q)
{
    struct view v = q->master;
    if (r->optimizer.moments.host)
        return ckpt_write(w, t, 0, t->n[0], v.p, v.dtype);
    int64_t row_bytes = view_count(v) / v.n[0] * (int64_t)dtype_bytes(v.dtype), rows = (8 << 20) / row_bytes > 0 ? (8 << 20) / row_bytes : 1;
    char *block = malloc((size_t)(rows * row_bytes));
    enum code c = block ? OK : fail(ERR_MEMORY, "out of memory for a block of %s", t->name);
    for (int64_t row = 0; c == OK && row < t->n[0]; row += rows) {
        int64_t now = t->n[0] - row < rows ? t->n[0] - row : rows;
        c = r->backend->device_copy(r->device, block, (const char *)v.p + row * row_bytes, (size_t)(now * row_bytes));
        if (c == OK)
            c = ckpt_write(w, t, row, now, block, v.dtype);
    }
    free(block);
    return c;
}

static enum code write_all(const struct run *r, struct ckpt_writer *w, const json_t *facts)
{
    char *card = NULL;
    size_t n = 0;
    for (int i = 0; i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *t = ckpt_writer_at(w, i);
        const struct model_param *q = model_param_find(r->model, t->name);
        if (!q)
            return fail(ERR_INTERNAL, "final: the model has no tensor %s", t->name);
        TRY(write_tensor(r, w, t, q));
    }
    TRY(add_tokenizer(r, w));
    enum code c = card_make(r, facts, &card, &n);
    if (c == OK)
        c = ckpt_add_file(w, "README.md", card, n);
    free(card);
    return c;
}

enum code final_write(struct run *r, char **path)
{
    static const enum dtype types[] = {DT_NONE, DT_F32, DT_BF16, DT_F16};
    struct ckpt_writer *w = NULL;
    json_t *facts = NULL;
    *path = io_join(r->options.output_dir, "final");
    if (!*path)
        return fail(ERR_MEMORY, "out of memory for a path");
    CHECK(!r->home.rewrite); /* tensors are written as they were trained */
    TRY(r->backend->device_sync(r->device));
    enum code c = facts_make(r, &facts);
    struct arch arch = {0};
    if (c == OK)
        c = arch_copy(&arch, &r->arch);
    if (c == OK)
        c = ckpt_choice_arch(&arch, &r->home);
    struct ckpt_target target = {.path = *path, .arch = &arch, .source = r->source, .dtype = types[r->options.dtype], .shard_bytes = 0,
                                 .force = 1, .compress = 0};
    if (c == OK)
        c = ckpt_create(&w, &target);
    if (c == OK && (c = write_all(r, w, facts)) != OK)
        ckpt_abandon(w);
    else if (c == OK) {
        ckpt_provenance(w, facts);
        c = ckpt_commit(w);
    }
    arch_free(&arch);
    json_decref(facts);
    return c;
}
