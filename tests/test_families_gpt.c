/* The families of the GPT-2 line: what their config.json means, above all where it is silent or spells a key in two ways, what their
 * files are called, and what they refuse. Names and defaults as of transformers 5. How their files are laid out is in
 * test_family_layouts.c, their logits in test_hf_golden.c. */
#include "family_case.h"

/* H 6, D 8, V 37 */
#define TYPE(name) "'model_type': '" name "', 'vocab_size': 37, "
#define GPT "'n_embd': 48, 'n_layer': 2, 'n_head': 6, 'n_positions': 40"
#define USUAL "'hidden_size': 48, 'num_hidden_layers': 2, 'num_attention_heads': 6"
#define EACH(block) "'decoder': {'blocks': [{" block "}, {" block "}]}"
#define SCALE_8 "'attn_scale': 0.35355339059327379"
#define ALL_BIASES "'bias': ['q', 'k', 'v', 'o', 'mlp_in', 'mlp_out', 'norm']"

/* ---- tables ------------------------------------------------------------------------------------------------------- */

#define GPT_REST "transformer.wte.weight[37,48] transformer.wpe.weight[40,48] transformer.h.0.ln_1.weight[48] transformer.h.0.ln_1.bias[48] " \
                 "transformer.h.0.ln_2.weight[48] transformer.h.0.ln_2.bias[48] transformer.ln_f.weight[48] transformer.ln_f.bias[48] " \
                 "transformer.h.0.mlp.c_proj.bias[48] "
#define GPT2_REST GPT_REST "transformer.h.0.attn.c_proj.bias[48] transformer.h.0.attn.c_proj.weight[48,48] "

static const struct family_case GPT2[] = {
    {"{'model_type': 'gpt2'}", "{'C': 768, 'V': 50257, 'max_positions': 1024, 'norm': 'layer', 'norm_eps': 1e-5, 'mlp': 'gelu_tanh', 'pos': 'learned', "
     "'pos_offset': 0, 'tied': 1, 'bos': 50256, 'eos': 50256, 'pad': -1, 'residual': 'sequential', 'attn_scale': 0.125, " ALL_BIASES "}", NULL},
    {"{" TYPE("gpt2") GPT "}", "{'family': 'gpt2', " SCALE_8 ", " EACH("'H': 6, 'G': 6, 'D': 8, 'F': 192, 'window': 0") "}",
     GPT2_REST "transformer.h.0.attn.c_attn.weight[48,144] transformer.h.0.attn.c_attn.bias[144] transformer.h.0.mlp.c_fc.weight[48,192] "
     "transformer.h.0.mlp.c_fc.bias[192] transformer.h.0.mlp.c_proj.weight[192,48]"},
    {"{" TYPE("gpt2") USUAL ", 'max_position_embeddings': 40, 'n_inner': 20, 'activation_function': 'relu', 'tie_word_embeddings': false, 'n_ctx': 40, 'output_past': true, 'task_specific_params': {'x': 1}}",
     "{'C': 48, 'max_positions': 40, 'mlp': 'relu', 'tied': 0, " EACH("'F': 20") "}",
     GPT2_REST "transformer.h.0.attn.c_attn.weight[48,144] transformer.h.0.attn.c_attn.bias[144] transformer.h.0.mlp.c_fc.weight[48,20] "
     "transformer.h.0.mlp.c_fc.bias[20] transformer.h.0.mlp.c_proj.weight[20,48] lm_head.weight[37,48]"},
    {"{" TYPE("gpt2") GPT ", 'hidden_size': 48, 'scale_attn_weights': false, 'reorder_and_upcast_attn': true}", "{'attn_scale': 1.0}", NULL},
    {"{" TYPE("gpt2") GPT ", 'scale_attn_by_inverse_layer_idx': true, 'activation_function': 'gelu'}",
     "{'mlp': 'gelu_erf', 'decoder': {'blocks': [{'scale': 0.35355339059327379}, {'scale': 0.17677669529663689}]}}", NULL},
    {"{" TYPE("gpt2") GPT ", 'scale_attn_by_inverse_layer_idx': true, 'scale_attn_weights': false}",
     "{'decoder': {'blocks': [{'scale': 1.0}, {'scale': 0.5}]}}", NULL},
};

static const struct family_case BIGCODE[] = {
    {"{'model_type': 'gpt_bigcode'}", "{'C': 768, 'V': 50257, 'max_positions': 1024, 'mlp': 'gelu_tanh', 'pos': 'learned', 'tied': 1, 'bos': 50256, "
     "'eos': 50256, " ALL_BIASES "}", NULL},
    {"{" TYPE("gpt_bigcode") GPT ", 'num_key_value_heads': 1}", "{" SCALE_8 ", " EACH("'H': 6, 'G': 1, 'F': 192") "}",
     GPT2_REST "transformer.h.0.attn.c_attn.weight[64,48] transformer.h.0.attn.c_attn.bias[64] transformer.h.0.mlp.c_fc.weight[192,48] "
     "transformer.h.0.mlp.c_fc.bias[192] transformer.h.0.mlp.c_proj.weight[48,192]"},
    {"{" TYPE("gpt_bigcode") GPT ", 'multi_query': false, 'activation_function': 'relu', 'n_inner': 20, 'attention_softmax_in_fp32': true, "
     "'scale_attn_weights': false}", "{'mlp': 'relu', 'attn_scale': 1.0, " EACH("'G': 6, 'F': 20") "}",
     GPT2_REST "transformer.h.0.attn.c_attn.weight[144,48] transformer.h.0.attn.c_attn.bias[144] transformer.h.0.mlp.c_fc.weight[20,48] "
     "transformer.h.0.mlp.c_fc.bias[20] transformer.h.0.mlp.c_proj.weight[48,20]"},
};

static const struct family_case NEO[] = {
    {"{'model_type': 'gpt_neo'}", "{'C': 2048, 'V': 50257, 'max_positions': 2048, 'mlp': 'gelu_tanh', 'pos': 'learned', 'attn_scale': 1.0, 'tied': 1, "
     "'bos': 50256, 'bias': ['o', 'mlp_in', 'mlp_out', 'norm']}", NULL},
    {"{" TYPE("gpt_neo") "'hidden_size': 48, 'num_layers': 2, 'num_heads': 6, 'max_position_embeddings': 40, 'attention_types': [[['global', 'local'], 1]], "
     "'window_size': 5, 'intermediate_size': 20, 'embed_dropout': 0}",
     "{'attn_scale': 1.0, 'decoder': {'blocks': [{'window': 0, 'F': 20}, {'window': 5}]}}",
     GPT_REST "transformer.h.0.attn.attention.q_proj.weight[48,48] transformer.h.0.attn.attention.k_proj.weight[48,48] "
     "transformer.h.0.attn.attention.v_proj.weight[48,48] transformer.h.0.attn.attention.out_proj.weight[48,48] "
     "transformer.h.0.attn.attention.out_proj.bias[48] transformer.h.0.mlp.c_fc.weight[20,48] transformer.h.0.mlp.c_fc.bias[20] "
     "transformer.h.0.mlp.c_proj.weight[48,20]"},
    {"{" TYPE("gpt_neo") USUAL ", 'attention_layers': ['local', 'global']}", "{'decoder': {'blocks': [{'window': 256, 'F': 192}, {'window': 0}]}}", NULL},
    {"{" TYPE("gpt_neo") USUAL ", 'attention_types': [[['local'], 1], [['global'], 1]], 'attention_layers': ['local', 'global']}",
     "{'decoder': {'blocks': [{'window': 256}, {'window': 0}]}}", NULL},
};

#define NEOX_REST "gpt_neox.embed_in.weight[37,48] gpt_neox.layers.0.input_layernorm.weight[48] gpt_neox.layers.0.input_layernorm.bias[48] " \
                  "gpt_neox.layers.0.post_attention_layernorm.weight[48] gpt_neox.layers.0.post_attention_layernorm.bias[48] " \
                  "gpt_neox.layers.0.attention.query_key_value.weight[144,48] gpt_neox.layers.0.attention.dense.weight[48,48] " \
                  "gpt_neox.layers.0.mlp.dense_h_to_4h.weight[20,48] gpt_neox.layers.0.mlp.dense_h_to_4h.bias[20] " \
                  "gpt_neox.layers.0.mlp.dense_4h_to_h.weight[48,20] gpt_neox.layers.0.mlp.dense_4h_to_h.bias[48] " \
                  "gpt_neox.final_layer_norm.weight[48] gpt_neox.final_layer_norm.bias[48] "
#define NEOX USUAL ", 'intermediate_size': 20"

static const struct family_case NEOX_[] = {
    {"{'model_type': 'gpt_neox', 'num_hidden_layers': 2}", "{'C': 6144, 'V': 50432, 'max_positions': 2048, 'norm_eps': 1e-5, 'mlp': 'gelu_erf', 'tied': 0, "
     "'bos': 0, 'eos': 2, 'residual': 'parallel_two_norms', 'rope': {'theta': 10000.0, 'dims': 24, 'kind': 'default'}, " ALL_BIASES ", "
     EACH("'H': 64, 'F': 24576") "}", NULL},
    {"{" TYPE("gpt_neox") NEOX "}", "{'rope': {'dims': 2}}",
     NEOX_REST "gpt_neox.layers.0.attention.query_key_value.bias[144] gpt_neox.layers.0.attention.dense.bias[48] embed_out.weight[37,48]"},
    {"{" TYPE("gpt_neox") NEOX ", 'use_parallel_residual': false, 'attention_bias': false, 'rotary_pct': 1.0, 'rotary_emb_base': 500, "
     "'tie_word_embeddings': true, 'layer_norm_eps': 1e-6, 'hidden_act': 'gelu_new'}",
     "{'residual': 'sequential', 'bias': ['mlp_in', 'mlp_out', 'norm'], 'rope': {'theta': 500.0, 'dims': 8}, 'norm_eps': 1e-6, 'mlp': 'gelu_tanh'}", NEOX_REST},
    {"{" TYPE("gpt_neox") NEOX ", 'rope_parameters': {'rope_type': 'default', 'rope_theta': 77, 'partial_rotary_factor': 0.5}}",
     "{'rope': {'theta': 77.0, 'dims': 4}}", NULL},
    {"{" TYPE("gpt_neox") NEOX ", 'rotary_pct': 0.5, 'rotary_emb_base': 20000, 'partial_rotary_factor': 0.5, 'rope_theta': 20000, "
     "'rope_scaling': {'type': 'linear', 'factor': 2.0}}", "{'rope': {'theta': 20000.0, 'dims': 4, 'kind': 'linear', 'factor': 2.0}}", NULL},
};

static const struct family_case GPTJ[] = {
    {"{'model_type': 'gptj', 'n_layer': 2}", "{'C': 4096, 'V': 50400, 'max_positions': 2048, 'mlp': 'gelu_tanh', 'tied': 0, 'bos': 50256, "
     "'residual': 'parallel_one_norm', 'bias': ['mlp_in', 'mlp_out', 'norm', 'head'], 'rope': {'dims': 64, 'theta': 10000.0}, " EACH("'H': 16, 'D': 256") "}", NULL},
    {"{" TYPE("gptj") GPT ", 'rotary_dim': 4, 'n_inner': null, 'scale_attn_weights': true, 'window_size': 256, 'rotary': true}",
     "{" SCALE_8 ", 'rope': {'dims': 4}, " EACH("'F': 192") "}",
     "transformer.wte.weight[37,48] transformer.h.0.ln_1.weight[48] transformer.h.0.ln_1.bias[48] transformer.h.0.attn.q_proj.weight[48,48] "
     "transformer.h.0.attn.k_proj.weight[48,48] transformer.h.0.attn.v_proj.weight[48,48] transformer.h.0.attn.out_proj.weight[48,48] "
     "transformer.h.0.mlp.fc_in.weight[192,48] transformer.h.0.mlp.fc_in.bias[192] transformer.h.0.mlp.fc_out.weight[48,192] "
     "transformer.h.0.mlp.fc_out.bias[48] transformer.ln_f.weight[48] transformer.ln_f.bias[48] lm_head.weight[37,48] lm_head.bias[37]"},
};

#define OPT USUAL ", 'ffn_dim': 20, 'max_position_embeddings': 40"
#define OPT_W "model.decoder.embed_positions.weight[42,48] model.decoder.layers.0.self_attn.q_proj.weight[48,48] " \
              "model.decoder.layers.0.self_attn.k_proj.weight[48,48] model.decoder.layers.0.self_attn.v_proj.weight[48,48] " \
              "model.decoder.layers.0.self_attn.out_proj.weight[48,48] model.decoder.layers.0.fc1.weight[20,48] model.decoder.layers.0.fc2.weight[48,20] "
#define OPT_B "model.decoder.layers.0.self_attn.q_proj.bias[48] model.decoder.layers.0.self_attn.k_proj.bias[48] " \
              "model.decoder.layers.0.self_attn.v_proj.bias[48] model.decoder.layers.0.self_attn.out_proj.bias[48] model.decoder.layers.0.fc1.bias[20] " \
              "model.decoder.layers.0.fc2.bias[48] "
#define OPT_N "model.decoder.layers.0.self_attn_layer_norm.weight[48] model.decoder.layers.0.self_attn_layer_norm.bias[48] " \
              "model.decoder.layers.0.final_layer_norm.weight[48] model.decoder.layers.0.final_layer_norm.bias[48] "
#define OPT_LAST "model.decoder.final_layer_norm.weight[48] model.decoder.final_layer_norm.bias[48] "

static const struct family_case OPT_[] = {
    {"{'model_type': 'opt'}", "{'C': 768, 'V': 50272, 'max_positions': 2048, 'pos_offset': 2, 'mlp': 'relu', 'norm_place': 'pre', 'norm_eps': 1e-5, 'bos': 2, "
     "'eos': 2, 'pad': 1, 'tied': 1, 'embed_proj': 0, " ALL_BIASES "}", NULL},
    {"{" TYPE("opt") OPT ", 'word_embed_proj_dim': 48, '_remove_final_layer_norm': false}", "{'embed_proj': 0, " SCALE_8 ", " EACH("'F': 20") "}",
     "model.decoder.embed_tokens.weight[37,48] " OPT_W OPT_B OPT_N OPT_LAST},
    {"{" TYPE("opt") OPT ", 'word_embed_proj_dim': 22, 'do_layer_norm_before': false, '_remove_final_layer_norm': true, 'tie_word_embeddings': false}",
     "{'embed_proj': 22, 'norm_place': 'post_residual', 'norm': 'layer'}",
     "model.decoder.embed_tokens.weight[37,22] model.decoder.project_in.weight[48,22] model.decoder.project_out.weight[22,48] lm_head.weight[37,22] "
     OPT_W OPT_B OPT_N},
    {"{" TYPE("opt") OPT ", 'enable_bias': false, 'activation_function': 'gelu', 'learned_embeddings': true, 'scale_embeddings': false}",
     "{'bias': ['norm'], 'mlp': 'gelu_erf'}", "model.decoder.embed_tokens.weight[37,48] " OPT_W OPT_N OPT_LAST},
    {"{" TYPE("opt") OPT ", 'layer_norm_elementwise_affine': false}", "{'norm': 'layer_nop', 'bias': ['q', 'k', 'v', 'o', 'mlp_in', 'mlp_out']}",
     "model.decoder.embed_tokens.weight[37,48] " OPT_W OPT_B},
};

#define QKV_REST(D, F) "transformer.word_embeddings.weight[37,48] transformer.ln_f.weight[48] transformer.ln_f.bias[48] " \
                       "transformer.h.0.self_attention.dense.weight[48,48] transformer.h.0.self_attention.query_key_value.weight[" #D ",48] " \
                       "transformer.h.0.mlp.dense_h_to_4h.weight[" #F ",48] transformer.h.0.mlp.dense_4h_to_h.weight[48," #F "] "
#define QKV_BIASES(D, F) "transformer.h.0.self_attention.dense.bias[48] transformer.h.0.self_attention.query_key_value.bias[" #D "] " \
                         "transformer.h.0.mlp.dense_h_to_4h.bias[" #F "] transformer.h.0.mlp.dense_4h_to_h.bias[48] "
#define NORM_1 "transformer.h.0.input_layernorm.weight[48] transformer.h.0.input_layernorm.bias[48] "
#define NORM_2 "transformer.h.0.post_attention_layernorm.weight[48] transformer.h.0.post_attention_layernorm.bias[48] "

static const struct family_case BLOOM[] = {
    {"{'model_type': 'bloom'}", "{'C': 64, 'V': 250880, 'mlp': 'gelu_tanh', 'pos': 'alibi', 'alibi_bias_max': 8.0, 'alibi_scaled': 0, 'embed_norm': 1, "
     "'tied': 1, 'bos': 1, 'eos': 2, 'pad': -1, " ALL_BIASES "}", NULL},
    {"{" TYPE("bloom") "'hidden_size': 48, 'n_layer': 2, 'num_attention_heads': 6, 'n_inner': null, 'offset_alibi': 100, 'seq_length': 2048, "
     "'pad_token_id': 3, 'unk_token_id': 0, 'pretraining_tp': 4, 'skip_bias_add_qkv': false}", "{'max_positions': 2048, 'pad': 3, " SCALE_8 ", " EACH("'F': 192") "}",
     QKV_REST(144, 192) QKV_BIASES(144, 192) NORM_1 NORM_2 "transformer.word_embeddings_layernorm.weight[48] transformer.word_embeddings_layernorm.bias[48]"},
    {"{" TYPE("bloom") "'n_embed': 48, 'num_hidden_layers': 2, 'n_head': 6, 'n_inner': 192, 'tie_word_embeddings': false}", "{'C': 48, 'tied': 0}", NULL},
};

#define MPT "'d_model': 48, 'n_layers': 2, 'n_heads': 6, 'max_seq_len': 40"
static const struct family_case MPT_[] = {
    {"{'model_type': 'mpt', 'n_layers': 2}", "{'C': 2048, 'V': 50368, 'max_positions': 2048, 'mlp': 'gelu_erf', 'pos': 'alibi', 'alibi_bias_max': 8.0, 'bias': [], "
     "'tied': 1, 'bos': -1, 'clip_qkv': 0.0, 'logit_scale': 1.0, 'embed_norm': 0, " EACH("'H': 16, 'F': 8192") "}", NULL},
    {"{" TYPE("mpt") MPT ", 'attn_config': {'attn_type': 'multihead_attention', 'attn_pdrop': 0, 'attn_impl': 'torch', 'clip_qkv': 6, 'softmax_scale': 0.25, "
     "'prefix_lm': false, 'qk_ln': false, 'attn_uses_sequence_id': false, 'alibi': true, 'alibi_bias_max': 16, 'model_type': ''}, 'expansion_ratio': 2, "
     "'learned_pos_emb': true, 'no_bias': true, 'norm_type': 'low_precision_layernorm', 'init_config': {'name': 'kaiming_normal_'}, 'verbose': 0, "
     "'ffn_config': {'ffn_type': 'mptmlp', 'fc_type': 'torch'}}",
     "{'clip_qkv': 6.0, 'attn_scale': 0.25, 'alibi_bias_max': 16.0, " EACH("'F': 96, 'G': 6") "}",
     "transformer.wte.weight[37,48] transformer.blocks.0.norm_1.weight[48] transformer.blocks.0.norm_2.weight[48] transformer.norm_f.weight[48] "
     "transformer.blocks.0.attn.Wqkv.weight[144,48] transformer.blocks.0.attn.out_proj.weight[48,48] transformer.blocks.0.ffn.up_proj.weight[96,48] "
     "transformer.blocks.0.ffn.down_proj.weight[48,96]"},
    {"{" TYPE("mpt") MPT ", 'logit_scale': 'inv_sqrt_d_model', 'attn_config': null}", "{'logit_scale': 0.14433756729740643}", NULL},
    {"{" TYPE("mpt") MPT ", 'logit_scale': 0.5, 'attn_config': {'clip_qkv': null, 'softmax_scale': null}}", "{'logit_scale': 0.5, " SCALE_8 "}", NULL},
};

static const struct family_case FALCON[] = {
    {"{'model_type': 'falcon', 'num_hidden_layers': 2}", "{'C': 4544, 'V': 65024, 'max_positions': 2048, 'mlp': 'gelu_erf', 'residual': 'parallel_one_norm', "
     "'bias': ['norm'], 'tied': 1, 'bos': 11, 'eos': 11, 'rope': {'dims': 64, 'theta': 10000.0}, " EACH("'H': 71, 'G': 1, 'F': 18176") "}", NULL},
    {"{" TYPE("falcon") USUAL ", 'multi_query': true, 'num_kv_heads': 6}", "{" SCALE_8 ", " EACH("'G': 1") "}", QKV_REST(64, 192) NORM_1},
    {"{" TYPE("falcon") USUAL ", 'alibi': true, 'multi_query': false, 'parallel_attn': false, 'bias': true, 'ffn_hidden_size': 20}",
     "{'residual': 'sequential', 'pos': 'alibi', 'alibi_scaled': 1, 'alibi_bias_max': 8.0, " ALL_BIASES ", " EACH("'G': 6, 'F': 20") "}",
     QKV_REST(144, 20) QKV_BIASES(144, 20) NORM_1 NORM_2},
    {"{" TYPE("falcon") USUAL ", 'new_decoder_architecture': true, 'multi_query': true, 'num_kv_heads': 3, 'n_embed': 48}",
     "{'residual': 'parallel_two_norms', " EACH("'G': 3") "}",
     QKV_REST(96, 192) "transformer.h.0.ln_attn.weight[48] transformer.h.0.ln_attn.bias[48] transformer.h.0.ln_mlp.weight[48] transformer.h.0.ln_mlp.bias[48]"},
    {"{" TYPE("falcon") USUAL ", 'new_decoder_architecture': true, 'num_kv_heads': 2, 'num_ln_in_parallel_attn': 1, 'tie_word_embeddings': false, "
     "'activation': 'gelu', 'rope_theta': 500042.0, 'ff_factor': 4, 'apply_residual_connection_post_layernorm': false}",
     "{'residual': 'parallel_one_norm', 'rope': {'theta': 500042.0}, " EACH("'G': 2") "}", QKV_REST(80, 192) NORM_1 "lm_head.weight[37,48]"},
    {"{" TYPE("falcon") USUAL ", 'new_decoder_architecture': true}", "{" EACH("'G': 6") "}", NULL},
    {"{" TYPE("falcon") USUAL ", 'multi_query': false}", "{'residual': 'parallel_one_norm', " EACH("'G': 6") "}", QKV_REST(144, 192) NORM_1},
};

static const struct family_refusal REFUSALS[] = {
    {"{" TYPE("gpt2") GPT ", 'hidden_size': 40}", ERR_INPUT, "\"n_embd\" and \"hidden_size\""},
    {"{" TYPE("gpt2") "'n_embd': 50, 'n_head': 6}", ERR_INPUT, "not a multiple"},
    {"{" TYPE("gpt2") GPT ", 'add_cross_attention': true}", ERR_UNSUPPORTED, "add_cross_attention"},
    {"{" TYPE("gpt2") GPT ", 'activation_function': 'silu'}", ERR_UNSUPPORTED, "silu"},
    {"{" TYPE("gpt2") GPT ", 'multi_query': true}", ERR_UNSUPPORTED, "multi_query"},
    {"{" TYPE("gpt_bigcode") GPT ", 'scale_attn_by_inverse_layer_idx': true}", ERR_UNSUPPORTED, "scale_attn_by_inverse_layer_idx"},
    {"{" TYPE("gpt_neo") USUAL "}", ERR_INPUT, "attention_types"},
    {"{" TYPE("gpt_neo") USUAL ", 'attention_types': [[['global', 'local'], 2]]}", ERR_INPUT, "more than the 2 layers"},
    {"{" TYPE("gpt_neo") USUAL ", 'attention_types': [[['global'], 1]]}", ERR_INPUT, "must describe the 2 layers"},
    {"{" TYPE("gpt_neo") USUAL ", 'attention_types': [[['global', 'odd'], 1]]}", ERR_UNSUPPORTED, "\"odd\""},
    {"{" TYPE("gpt_neo") USUAL ", 'attention_types': [[['global'], 2]], 'attention_layers': ['global', 'local']}", ERR_INPUT, "differ in layer 1"},
    {"{" TYPE("gpt_neo") USUAL ", 'attention_types': [1]}", ERR_INPUT, "entry 0"},
    {"{" TYPE("gpt_neo") USUAL ", 'attention_types': 'global', 'attention_layers': ['global', 'local']}", ERR_INPUT, "must be lists"},
    {"{" TYPE("gpt_neox") NEOX ", 'rotary_pct': 0.25, 'partial_rotary_factor': 0.5}", ERR_INPUT, "rotary_pct"},
    {"{" TYPE("gpt_neox") NEOX ", 'rope_theta': 20000}", ERR_INPUT, "rotary_emb_base"}, /* which transformers takes for 10000 */
    {"{" TYPE("gpt_neox") NEOX ", 'num_key_value_heads': 3}", ERR_UNSUPPORTED, "num_key_value_heads"},
    {"{" TYPE("gptj") GPT ", 'rotary_dim': null}", ERR_UNSUPPORTED, "rotary_dim"},
    {"{" TYPE("gptj") GPT ", 'rotary_dim': 10}", ERR_INPUT, "rotary dimensions"},
    {"{" TYPE("gptj") GPT ", 'rotary_dim': 4, 'rotary': false}", ERR_UNSUPPORTED, "\"rotary\": false"},
    {"{" TYPE("gptj") GPT ", 'rotary_dim': 4, 'rope_theta': 20000}", ERR_UNSUPPORTED, "rope_theta"},
    {"{" TYPE("opt") OPT ", '_remove_final_layer_norm': true}", ERR_UNSUPPORTED, "_remove_final_layer_norm"},
    {"{" TYPE("opt") OPT ", 'scale_embeddings': true}", ERR_UNSUPPORTED, "scale_embeddings"},
    {"{" TYPE("opt") OPT ", 'learned_embeddings': false}", ERR_UNSUPPORTED, "learned_embeddings"},
    {"{" TYPE("bloom") "'apply_residual_connection_post_layernorm': true}", ERR_UNSUPPORTED, "apply_residual_connection_post_layernorm"},
    {"{" TYPE("bloom") "'n_inner': 100}", ERR_UNSUPPORTED, "n_inner"},
    {"{" TYPE("bloom") "'hidden_size': 64, 'n_embed': 48}", ERR_INPUT, "n_embed"},
    {"{" TYPE("mpt") MPT ", 'no_bias': false}", ERR_UNSUPPORTED, "no_bias"},
    {"{" TYPE("mpt") MPT ", 'norm_type': 'rmsnorm'}", ERR_UNSUPPORTED, "rmsnorm"},
    {"{" TYPE("mpt") MPT ", 'ffn_config': {'ffn_type': 'mptglu'}}", ERR_UNSUPPORTED, "ffn_type"},
    {"{" TYPE("mpt") MPT ", 'ffn_config': {'ffn_type': 'mptmlp', 'ffn_hidden_size': 20}}", ERR_UNSUPPORTED, "ffn_hidden_size"},
    {"{" TYPE("mpt") MPT ", 'attn_config': {'qk_ln': true}}", ERR_UNSUPPORTED, "qk_ln"},
    {"{" TYPE("mpt") MPT ", 'attn_config': {'alibi': false}}", ERR_UNSUPPORTED, "alibi"},
    {"{" TYPE("mpt") MPT ", 'attn_config': {'prefix_lm': true}}", ERR_UNSUPPORTED, "prefix_lm"},
    {"{" TYPE("mpt") MPT ", 'attn_config': {'attn_type': 'odd'}}", ERR_UNSUPPORTED, "attn_type"},
    {"{" TYPE("mpt") MPT ", 'attn_config': {'novel': 3}}", ERR_UNSUPPORTED, "novel"},
    {"{" TYPE("mpt") MPT ", 'attn_config': 3}", ERR_INPUT, "attn_config"},
    {"{" TYPE("mpt") MPT ", 'attn_config': {'clip_qkv': -1}}", ERR_INPUT, "clip_qkv"},
    {"{" TYPE("mpt") MPT ", 'attn_config': {'kv_n_heads': 4}}", ERR_INPUT, "num_key_value_heads 4"},
    {"{" TYPE("falcon") USUAL ", 'new_decoder_architecture': true, 'parallel_attn': false}", ERR_UNSUPPORTED, "parallel_attn"},
    {"{" TYPE("falcon") USUAL ", 'num_ln_in_parallel_attn': 2}", ERR_UNSUPPORTED, "num_ln_in_parallel_attn"},
    {"{" TYPE("falcon") USUAL ", 'n_head': 6}", ERR_UNSUPPORTED, "n_head"}, /* transformers does not read it */
    {"{" TYPE("falcon") USUAL ", 'new_decoder_architecture': true, 'num_kv_heads': 4}", ERR_INPUT, "num_key_value_heads 4"},
};

static void test_gpt2(void **state) { (void)state; family_cases_check(GPT2, COUNT_OF(GPT2)); }
static void test_gpt_bigcode(void **state) { (void)state; family_cases_check(BIGCODE, COUNT_OF(BIGCODE)); }
static void test_gpt_neo(void **state) { (void)state; family_cases_check(NEO, COUNT_OF(NEO)); }
static void test_gpt_neox(void **state) { (void)state; family_cases_check(NEOX_, COUNT_OF(NEOX_)); }
static void test_gptj(void **state) { (void)state; family_cases_check(GPTJ, COUNT_OF(GPTJ)); }
static void test_opt(void **state) { (void)state; family_cases_check(OPT_, COUNT_OF(OPT_)); }
static void test_bloom(void **state) { (void)state; family_cases_check(BLOOM, COUNT_OF(BLOOM)); }
static void test_mpt(void **state) { (void)state; family_cases_check(MPT_, COUNT_OF(MPT_)); }
static void test_falcon(void **state) { (void)state; family_cases_check(FALCON, COUNT_OF(FALCON)); }
static void test_refusals(void **state) { (void)state; family_refusals_check(REFUSALS, COUNT_OF(REFUSALS)); }

/* ---- real configs ------------------------------------------------------------------------------------------------- */

static void test_real_configs(void **state)
{
    (void)state;
    static const struct { const char *file; int64_t parameters, rotary; enum pos_kind pos; enum dtype dtype; } real[] = {
        {"configs/bloom-3b.json", 3002557440, 80, POS_ALIBI, DT_F32}, {"configs/gpt-j-6b.json", 6050882784, 64, POS_ROPE, DT_F32},
        {"configs/opt-13b.json", 12853437440, 128, POS_LEARNED, DT_F16}, {"configs/pythia-410m.json", 405334016, 16, POS_ROPE, DT_F32}};
    for (size_t i = 0; i < COUNT_OF(real); i++) {
        char *path = data_path(real[i].file), *bytes;
        size_t n;
        struct arch a;
        if (!path)
            continue;
        assert_ok(io_read_all(path, 1 << 20, &bytes, &n));
        assert_ok(arch_from_config_json(&a, bytes, n, path));
        assert_int_equal(arch_parameters(&a), real[i].parameters); /* as transformers counts */
        assert_int_equal(a.pos, real[i].pos);
        assert_int_equal(a.dtype, real[i].dtype);
        assert_int_equal(a.rope.dims, real[i].rotary);
        arch_free(&a);
        free(bytes);
        free(path);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpt2), cmocka_unit_test(test_gpt_bigcode), cmocka_unit_test(test_gpt_neo), cmocka_unit_test(test_gpt_neox),
        cmocka_unit_test(test_gptj), cmocka_unit_test(test_opt), cmocka_unit_test(test_bloom), cmocka_unit_test(test_mpt),
        cmocka_unit_test(test_falcon), cmocka_unit_test(test_refusals), cmocka_unit_test(test_real_configs),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
