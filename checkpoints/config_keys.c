/* Which keys of a config.json we know. A key that could change the function a model computes must be understood, so an
 * unknown one is refused by name. Known to be harmless, and carried through: how to train, generate, label, load or display;
 * any key whose value is null; any key that begins with '_' (private to the library that wrote it). */
#include <stdlib.h>
#include <string.h>

#include "family.h"

/* Read by hf_config.c for every family. */
static const char *const COMMON[] = {"model_type", "torch_dtype", "dtype", "tie_word_embeddings", "bos_token_id", "eos_token_id",
                                     "pad_token_id", "vocab_size", NULL};

static const char *const HARMLESS[] = {
    /* who wrote it, how to load it */
    "architectures", "auto_map", "transformers_version", "transformers.js_config", "tokenizer_class", "is_llama_config", "model_name",
    "base_model_tp_plan", "base_model_pp_plan", "unsloth_version", "unsloth_fixed", "unsloth_training_method", "tf_legacy_loss",
    "torchscript", "use_bfloat16", "attn_implementation", "use_cache", "use_flash_attn", "return_dict", "output_attentions",
    "output_hidden_states", "name_or_path", "license", "neuron", "max_sequence_length", "model_max_length", "tokenizer_model_max_length",
    "tokenizer_padding_side", "pretraining_tp", "low_cpu_mem_usage", "chunk_size_feed_forward",
    /* how it was or is to be trained */
    "initializer_range", "attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout", "residual_dropout", "embedding_dropout", "gradient_checkpointing",
    "router_aux_loss_coef", "z_loss", "max_grad_norm", "tokens_seen",
    /* classification and other heads that a language model does not have */
    "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params", "classifier_dropout",
    /* generation defaults of old files */
    "max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores", "return_dict_in_generate",
    "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens", "prefix", "sep_token_id", "cls_token_id", "mask_token_id", "unk_token_id", "decoder_start_token_id",
    "is_decoder", NULL};

/* Keys that are harmless only at the value that means "off". */
struct neutral { const char *key; char value; }; /* f: false, e: empty, 0 and 1: the number */
static const struct neutral NEUTRAL[] = {
    {"add_cross_attention", 'f'}, {"is_encoder_decoder", 'f'},     {"tie_encoder_decoder", 'f'}, {"rope_interleaved", 'f'},
    {"use_sliding_window", 'f'},  {"use_qk_norm", 'f'},            {"qk_layernorm", 'f'},        {"use_parallel_residual", 'f'},
    {"pruned_heads", 'e'},        {"quantization_config", 'e'},    {"partial_rotary_factor", '1'}, {"residual_multiplier", '1'},
    {"attention_bias", 'f'},      {"mlp_bias", 'f'},               {"lm_head_bias", 'f'},        {"use_mrope", 'f'},
    {"use_bidirectional_attention", 'f'}, {"full_attn_mod", '1'},  {"interpolate_factor", '1'},
    {"embedding_multiplier", '1'}, {"logits_scaling", '1'},        {"final_logit_softcapping", '0'}, {"attn_logit_softcapping", '0'},
};

static int listed(const char *const *list, const char *key)
{
    for (; *list; list++)
        if (!strcmp(*list, key))
            return 1;
    return 0;
}

static int is_neutral(const json_t *v, char value)
{
    switch (value) {
    case 'f': return json_is_false(v);
    case 'e': return (json_is_object(v) && json_object_size(v) == 0) || (json_is_array(v) && json_array_size(v) == 0);
    default: return json_is_number(v) && json_number_value(v) >= value - '0' && json_number_value(v) <= value - '0';
    }
}

enum code config_keys_check(const json_t *config, const struct family *family, const char *where)
{
    const char *key;
    json_t *v;
    json_object_foreach ((json_t *)config, key, v) {
        if (json_is_null(v) || *key == '_' || listed(COMMON, key) || listed(HARMLESS, key) || listed(family->keys, key))
            continue;
        int known = 0;
        for (size_t i = 0; i < sizeof NEUTRAL / sizeof *NEUTRAL; i++)
            known |= !strcmp(NEUTRAL[i].key, key) && is_neutral(v, NEUTRAL[i].value);
        if (known)
            continue;
        char *text = json_text(v, JSON_ENCODE_ANY | JSON_COMPACT);
        const char *type = json_string_value(json_object_get(config, "model_type"));
        enum code c = fail(ERR_UNSUPPORTED, "%s: \"%.80s\": %.60s is not understood for model_type \"%s\"; if it does not change what "
                           "the model computes, remove the key", where, key, text ? text : "?", type ? type : "?");
        free(text);
        return c;
    }
    return OK;
}
