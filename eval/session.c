/* Opening what every command needs: checkpoint, device, model, tokenizer. */
#include "eval.h"

#include <string.h>

enum dtype session_dtype(int choice, const struct arch *a)
{
    if (choice == 0)
        return a->dtype == DT_BF16 ? DT_BF16 : DT_F32;
    return choice == 1 ? DT_F32 : DT_BF16;
}

enum code session_open(struct session *s, const struct session_options *o)
{
    memset(s, 0, sizeof *s);
    host_threads_set(o->threads);
    TRY(ckpt_open(&s->checkpoint, o->path, NULL));
    TRY(backend_find(o->device ? o->device : "auto", &s->backend));
    struct device_options device = { o->threads };
    return s->backend->device_open(&s->device, &device);
}

enum code session_model(struct session *s, const struct session_options *o, struct model_options shape)
{
    shape.dtype = o->dtype;
    TRY(model_open(&s->model, ckpt_arch(s->checkpoint), s->backend, s->device, &shape));
    return model_load(s->model, s->checkpoint);
}

enum code session_reference(struct session *s, const struct session_options *o, struct model_options shape)
{
    TRY(ckpt_open(&s->reference_checkpoint, o->path, NULL));
    TRY(model_same_tokens(s->checkpoint, s->reference_checkpoint));
    shape.dtype = o->dtype != DT_NONE ? o->dtype : session_dtype(0, ckpt_arch(s->reference_checkpoint));
    TRY(model_open(&s->reference, ckpt_arch(s->reference_checkpoint), s->backend, s->device, &shape));
    return model_load(s->reference, s->reference_checkpoint);
}

void session_close(struct session *s)
{
    model_close(s->model);
    model_close(s->reference);
    ckpt_close(s->reference_checkpoint);
    if (s->device)
        s->backend->device_close(s->device);
    ckpt_close(s->checkpoint);
    memset(s, 0, sizeof *s);
}

enum code eval_tokenizer(struct checkpoint *ck, const char *asked, struct tokenizer **t)
{
    if (asked && strcmp(asked, "model") != 0)
        return tokenizer_open(t, asked);
    return fail_in(model_tokenizer(t, ck), "--tokenizer");
}

enum code eval_ids_check(const int32_t *ids, int64_t n, const struct arch *a)
{
    for (int64_t i = 0; i < n; i++)
        if (ids[i] >= a->V)
            return fail(ERR_INPUT, "the tokenizer gives the id %d, but the model's vocabulary has %lld: this is not the tokenizer it was trained with; "
                        "name that one with --tokenizer", ids[i], (long long)a->V);
    return OK;
}
