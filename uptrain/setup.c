/* From options to a model that can take a step: source checkpoint and architecture, device, data, parameters. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

static const char *at(const struct run *r, const char *key)
{
    return config_where(r->options.config, config_root(r->options.config), key);
}

/* The families whose config.json is written in the words of model.arch, with their classes. */
static enum code class_of_new(const struct run *r, const char *family, const char **class_name)
{
    static const char *const table[][2] = {{"llama", "LlamaForCausalLM"}, {"mistral", "MistralForCausalLM"}, {"qwen2", "Qwen2ForCausalLM"},
                                           {"qwen3", "Qwen3ForCausalLM"}, {"olmo2", "Olmo2ForCausalLM"},     {"phi3", "Phi3ForCausalLM"}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i][0], family)) {
            *class_name = table[i][1];
            return OK;
        }
    return fail(ERR_USAGE, "%s: model.arch.family %s: a new model can be llama, mistral, qwen2, qwen3, olmo2 or phi3; of another family only a checkpoint "
                "(model.path) is trained", at(r, "model.arch.family"), family);
}

/* model.arch is said in the words of config.json, so the family that reads such files also makes the new architecture. */
static enum code arch_of_options(struct run *r)
{
    const struct options *o = &r->options;
    const struct arch_options *a = &o->arch;
    const struct dataset *d = &r->data;
    int64_t V = a->vocab_size != UNSET_INT ? a->vocab_size : d->tokenizer ? tokenizer_vocab(d->tokenizer) : 0;
    if (V <= 0)
        return fail(ERR_USAGE, "%s: model.arch.vocab_size is needed: no tokenizer says it", at(r, "model.arch"));
    if (d->tokenizer && V < tokenizer_vocab(d->tokenizer))
        return fail(ERR_USAGE, "%s: model.arch.vocab_size %lld is below the tokenizer's %lld", at(r, "model.arch.vocab_size"), (long long)V,
                    (long long)tokenizer_vocab(d->tokenizer));
    if (a->head_dim == UNSET_INT && a->hidden_size % a->heads != 0)
        return fail(ERR_USAGE, "%s: hidden_size %lld is no multiple of num_attention_heads %lld; set head_dim", at(r, "model.arch.hidden_size"),
                    (long long)a->hidden_size, (long long)a->heads);
    const char *class_name = NULL;
    TRY(class_of_new(r, a->family, &class_name));
    int64_t bos = a->bos != UNSET_INT ? a->bos : d->bos, eos = a->eos != UNSET_INT ? a->eos : d->eos;
    json_t *j = json_pack(
        "{s:[s], s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:f, s:f, s:f, s:s, s:b, s:b, s:s}", "architectures",
        class_name, "model_type", a->family, "hidden_size", (json_int_t)a->hidden_size, "num_hidden_layers", (json_int_t)a->layers,
        "num_attention_heads", (json_int_t)a->heads, "num_key_value_heads",
        (json_int_t)(a->kv_heads == UNSET_INT ? a->heads : a->kv_heads), "head_dim",
        (json_int_t)(a->head_dim == UNSET_INT ? a->hidden_size / a->heads : a->head_dim), "intermediate_size",
        (json_int_t)a->intermediate_size, "vocab_size", (json_int_t)V, "max_position_embeddings",
        (json_int_t)(a->max_positions == UNSET_INT ? o->sequence_len : a->max_positions), "tie_word_embeddings", a->tied, "rms_norm_eps",
        a->norm_eps, "rope_theta", a->rope_theta, "initializer_range", a->init_sd, "hidden_act", "silu", "attention_bias", 0, "mlp_bias", 0,
        "torch_dtype", "float32");
    if (!j)
        return fail(ERR_MEMORY, "out of memory for the new config.json");
    if (bos >= 0)
        json_object_set_new(j, "bos_token_id", json_integer(bos));
    if (eos >= 0)
        json_object_set_new(j, "eos_token_id", json_integer(eos));
    char *text = json_text(j, JSON_INDENT(2)), where[512];
    json_decref(j);
    if (!text)
        return fail(ERR_MEMORY, "out of memory for the new config.json");
    snprintf(where, sizeof where, "%s: model.arch", at(r, "model.arch"));
    enum code c = arch_from_config_json(&r->arch, text, strlen(text), where);
    free(text);
    r->arch_known = c == OK;
    return c == ERR_INPUT ? fail_in(ERR_USAGE, "%s", o->file) : c;
}

/* What is trained must be writable at the end: decided here, before hours are spent. */
static enum code choose_home(struct run *r)
{
    char *final = io_join(r->options.output_dir, "final");
    if (!final)
        return fail(ERR_MEMORY, "out of memory for a path");
    enum code c = ckpt_choose(&r->arch, final, HOME_NATIVE, NULL, &r->home);
    if (c == ERR_UNSUPPORTED) {
        log_info("final: %s", fail_text());
        c = ckpt_choose(&r->arch, final, HOME_CUSTOM, NULL, &r->home);
        if (c == OK)
            log_info("final: %s", r->home.sentence);
    }
    free(final);
    return c;
}

enum code setup_source(struct run *r)
{
    const struct options *o = &r->options;
    if (o->init == INIT_RANDOM) {
        TRY(dataset_tokenizer(&r->data, o, NULL));
        TRY(arch_of_options(r));
        return choose_home(r);
    }
    r->source_path = o->model_path;
    if (o->gqa.kv_budget)
        TRY(regroup_check(r));
    if (options_converts(o) && !r->plan)
        TRY(convert_first(r));
    TRY(ckpt_open(&r->source, r->source_path, NULL));
    TRY(arch_copy(&r->arch, ckpt_arch(r->source)));
    r->arch_known = 1;
    if (options_converts(o) && r->plan)
        TRY(regroup(r));
    TRY(choose_home(r));
    return dataset_tokenizer(&r->data, o, r->source);
}

enum code setup_device(struct run *r, const char *name)
{
    struct device_options d = {.threads = (int)r->options.threads};
    if (!r->backend) /* a test brings its own */
        TRY(backend_find(name, &r->backend));
    TRY(r->backend->device_open(&r->device, &d));
    if (r->options.precision == PRECISION_BF16 && r->backend->activation_dtype(r->device, DT_BF16) != DT_BF16)
        return fail(ERR_UNSUPPORTED, "%s: precision bf16 trains on CUDA only; the CPU trains in fp32 (the result can still be stored as "
                    "bf16: model.dtype)", at(r, "precision"));
    return OK;
}

enum code setup_data(struct run *r)
{
    const struct options *o = &r->options;
    if (r->arch.max_positions > 0 && o->sequence_len > r->arch.max_positions)
        return fail(ERR_USAGE, "%s: sequence_len %lld is beyond the model's max_position_embeddings %lld; lower it", at(r, "sequence_len"),
                    (long long)o->sequence_len, (long long)r->arch.max_positions);
    char *cache = io_join(o->output_dir, "cache");
    if (!cache)
        return fail(ERR_MEMORY, "out of memory for a path");
    enum code c = dataset_open(&r->data, o, &r->arch, r->plan ? NULL : cache);
    free(cache);
    return c;
}

struct model_options setup_model_options(const struct run *r)
{
    const struct options *o = &r->options;
    int bf16 = o->precision == PRECISION_BF16;
    return (struct model_options){.train = 1, .recompute = o->checkpointing, .dtype = bf16 ? DT_BF16 : DT_F32,
                                  .no_master = bf16 && !o->master_weights, .deterministic = o->deterministic, .B = o->micro_batch_size,
                                  .T = o->sequence_len, .cache_B = 0, .cache_S = 0, .cache_dtype = DT_F32,
                                  .taught = !o->distill.on ? 0 : o->distill.top_k > 0 ? o->distill.top_k : -1};
}

/* What the whole takes, and what takes less of it. Accumulation makes up for smaller micro-batches: the result is the same. */
static enum code memory_hint(const struct run *r, enum code c)
{
    const struct options *o = &r->options;
    struct model_options m = setup_model_options(r);
    struct model_memory need;
    char text[900], total[16], smaller[80] = "";
    int64_t B = o->micro_batch_size / 2;
    snprintf(text, sizeof text, "%s", fail_text());
    if (model_measure(&r->arch, r->backend, r->device, &m, &need) != OK)
        return fail(c, "%s", text);
    format_bytes(total, (double)(need.parameters + 3 * need.gradients + need.activations + need.scratch));
    while (B > 1 && o->global_batch_size % B)
        B--;
    if (B > 0)
        snprintf(smaller, sizeof smaller, "micro_batch_size: %lld (now %lld, the global batch stays), ", (long long)B, (long long)o->micro_batch_size);
    return fail(c, "%s; training takes about %s in all: set %sactivation_checkpointing: block, or a lower sequence_len; --plan tells what each needs", text, total, smaller);
}

static enum code open_model(struct run *r)
{
    const struct options *o = &r->options;
    struct model_options m = setup_model_options(r);
    TRY(model_open(&r->model, &r->arch, r->backend, r->device, &m));
    TRY(optimizer_open(&r->optimizer, r->model, r->backend, r->device, o));
    TRY(batch_alloc(&r->batch, o->micro_batch_size, o->sequence_len));
    TRY(state_arrays(r));
    return OK;
}

enum code setup_model(struct run *r)
{
    const struct options *o = &r->options;
    enum code c = open_model(r);
    if (c == ERR_MEMORY)
        return memory_hint(r, c);
    TRY(c);
    return r->source ? model_load(r->model, r->source) : model_init(r->model, o->arch.init_sd, (uint64_t)o->seed);
}
