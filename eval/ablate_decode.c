/* Speed by shape (gqa-eval decode): all group counts one after the other at the end, so that they see the same machine. */
#include "ablate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RESULT_LIMIT (64u << 20)

static void join(char *out, size_t n, const struct config_list *list)
{
    size_t used = 0;
    out[0] = 0;
    for (int i = 0; i < list->n && used + 24 <= n; i++)
        used += (size_t)snprintf(out + used, n - used, "%s%lld", i ? "," : "", (long long)((const int64_t *)list->items)[i]);
}

static enum code decode_rows(const struct ablation *a, const struct cell *c, json_t **rows)
{
    struct ablate_paths p;
    char record[1300], key[4096], batch[MOST_DECODE * 24], context[MOST_DECODE * 24], new_tokens[24], repeats[24], threads[24];
    ablate_cell_paths(a, c, &p);
    join(batch, sizeof batch, &a->config.decode_batch);
    join(context, sizeof context, &a->config.decode_context);
    snprintf(new_tokens, sizeof new_tokens, "%lld", (long long)a->config.decode_new);
    snprintf(repeats, sizeof repeats, "%lld", (long long)a->config.decode_repeats);
    snprintf(threads, sizeof threads, "%lld", (long long)a->config.threads);
    char shape[24];
    snprintf(shape, sizeof shape, "%lld", (long long)c->G);
    if (c->G < 0)
        snprintf(shape, sizeof shape, "%s", c->conversion);
    int n = snprintf(key, sizeof key, "%s %s %s %s %s %s", a->source_hash, shape, batch, context, new_tokens, repeats);
    if (a->config.threads > 0)
        n += snprintf(key + n, sizeof key - (size_t)n, " threads %s", threads);
    snprintf(record, sizeof record, "%s/decode", p.root);
    TRY(io_mkdirs(record));
    snprintf(record, sizeof record, "%s/decode/g%s-%016llx.json", p.root, shape, (unsigned long long)hash64(key, (size_t)n));
    json_t *j = NULL;
    if (!io_exists(record)) {
        const char *arguments[] = { "decode", ablate_start_path(a, c, &p), "--batch", batch, "--context", context, "--new", new_tokens, "--repeats", repeats,
                                    "--threads", threads, "--device", a->config.device, "--json", NULL };
        char *out = NULL;
        TRY(child_program("gqa-eval", arguments, p.log, &out));
        enum code e = io_write_atomic(record, out, strlen(out));
        free(out);
        TRY(e);
    }
    TRY(json_read_file(record, RESULT_LIMIT, &j));
    *rows = json_incref(json_object_get(j, "rows"));
    json_decref(j);
    return OK;
}

enum code ablate_decode(struct ablation *a)
{
    for (int i = 0; i < a->n_cells; i++) {
        struct cell *c = &a->cells[i];
        if (!c->done)
            continue;
        for (int k = 0; k < i && !c->decode; k++)
            if (ablate_same_shape(&a->cells[k], c))
                c->decode = json_incref(a->cells[k].decode);
        enum code e = c->decode ? OK : decode_rows(a, c, &c->decode);
        if (e == ERR_STOPPED)
            return e;
        char speed_of[96];
        ablate_heads_name(a, c->G, "key/value ", speed_of);
        if (e != OK) /* the quality of hours of training is worth a report without speed */
            log_warn("no speed for %s: %s", speed_of, fail_text());
        c->kv_bytes = json_integer_value(json_object_get(json_array_get(c->decode, 0), "kv_bytes_per_token"));
    }
    return OK;
}
