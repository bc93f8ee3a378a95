/* Families whose own class has key/value heads: what their config.json means, above all where it is silent, what their files are
 * called, what they refuse, and what of another family's model they can hold. Names and defaults as of transformers 5. */
#include "family_case.h"

#include <math.h>

/* H 6, G 3, D 8 = C / H */
#define DIMS "'hidden_size': 48, 'intermediate_size': 20, 'num_hidden_layers': 2, 'num_attention_heads': 6, 'vocab_size': 37"
#define GQA DIMS ", 'num_key_value_heads': 3"
#define TYPE(name) "'model_type': '" name "', "
#define EACH(block) "'decoder': {'blocks': [{" block "}, {" block "}]}"
#define SCALE_8 "'attn_scale': 0.35355339059327379"
#define SCALE_10 "'attn_scale': 0.31622776601683794"

#define QKVO_10 "model.layers.0.self_attn.q_proj.weight[60,48] model.layers.0.self_attn.k_proj.weight[30,48] " \
                "model.layers.0.self_attn.v_proj.weight[30,48] model.layers.0.self_attn.o_proj.weight[48,60] "
#define QKVO "model.layers.0.self_attn.q_proj.weight[48,48] model.layers.0.self_attn.k_proj.weight[24,48] " \
             "model.layers.0.self_attn.v_proj.weight[24,48] model.layers.0.self_attn.o_proj.weight[48,48] "
#define QKV_B "model.layers.0.self_attn.q_proj.bias[48] model.layers.0.self_attn.k_proj.bias[24] model.layers.0.self_attn.v_proj.bias[24] "
#define GATED "model.layers.0.mlp.gate_proj.weight[20,48] model.layers.0.mlp.up_proj.weight[20,48] model.layers.0.mlp.down_proj.weight[48,20] "
#define NORMS_W "model.layers.0.input_layernorm.weight[48] model.layers.0.post_attention_layernorm.weight[48] model.norm.weight[48] "
#define NORMS_B "model.layers.0.input_layernorm.bias[48] model.layers.0.post_attention_layernorm.bias[48] model.norm.bias[48] "
#define EMBED "model.embed_tokens.weight[37,48] "
#define HEAD "lm_head.weight[37,48]"

static const struct family_case QWEN[] = {
    {"{" TYPE("qwen2") "'x': null}",
     "{'C': 4096, 'V': 151936, 'max_positions': 32768, 'norm': 'rms', 'norm_eps': 1e-6, 'mlp': 'swiglu', 'bias': ['q', 'k', 'v'], 'tied': 0, "
     "'bos': -1, 'eos': -1, 'pad': -1, 'rope': {'kind': 'default', 'theta': 10000.0, 'dims': 128}, 'embed_scale': 1.0}", NULL},
    {"{" TYPE("qwen2") GQA "}", "{'family': 'qwen2', 'qk_norm': 'none', 'clip_qkv': 0.0, " SCALE_8 ", " EACH("'H': 6, 'G': 3, 'D': 8, 'F': 20, 'window': 0") "}",
     EMBED QKVO QKV_B GATED NORMS_W HEAD},
    {"{" TYPE("qwen2") DIMS ", 'num_key_value_heads': null, 'sliding_window': 5, 'use_sliding_window': false}", "{" EACH("'G': 6, 'window': 0") "}", NULL},
    {"{" TYPE("qwen2") GQA ", 'sliding_window': 5, 'use_sliding_window': true, 'max_window_layers': 1, 'tie_word_embeddings': true}",
     "{'tied': 1, 'decoder': {'blocks': [{'window': 0}, {'window': 5}]}}", EMBED QKVO QKV_B GATED "model.layers.0.input_layernorm.weight[48] "
     "model.layers.0.post_attention_layernorm.weight[48] model.norm.weight[48]"},
    {"{" TYPE("qwen2") GQA ", 'sliding_window': 5, 'use_sliding_window': true}", "{" EACH("'window': 0") "}", NULL}, /* from layer 28 on */
    {"{" TYPE("qwen2") GQA ", 'use_sliding_window': true, 'max_window_layers': 0}", "{" EACH("'window': 4096") "}", NULL},
    {"{" TYPE("qwen2") GQA ", 'use_sliding_window': true, 'sliding_window': null, 'max_window_layers': 0}", "{" EACH("'window': 0") "}", NULL},
    {"{" TYPE("qwen2") GQA ", 'use_sliding_window': true, 'sliding_window': 6, 'layer_types': ['sliding_attention', 'full_attention'], "
     "'rope_parameters': {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 64, 'rope_theta': 1e6}}",
     "{'rope': {'theta': 1000000.0, 'kind': 'yarn'}, 'decoder': {'blocks': [{'window': 6}, {'window': 0}]}}", NULL},
    {"{" TYPE("qwen2") DIMS ", 'num_key_value_heads': 2, 'head_dim': 10, 'use_mrope': false}", "{" SCALE_10 ", " EACH("'D': 10, 'G': 2") "}", NULL},
    {"{" TYPE("qwen3") "'num_attention_heads': 64, 'num_hidden_layers': 2}", "{'max_positions': 32768, 'norm_eps': 1e-6, 'bias': [], "
     "'qk_norm': 'head', 'rope': {'dims': 128}, " EACH("'G': 32, 'D': 128, 'F': 22016") "}", NULL},
    {"{" TYPE("qwen3") GQA ", 'head_dim': 10, 'rms_norm_eps': 1e-5}", "{'norm': 'rms', 'norm_eps': 1e-5, 'mlp': 'swiglu', 'norm_place': 'pre'}",
     EMBED QKVO_10 "model.layers.0.self_attn.q_norm.weight[10] model.layers.0.self_attn.k_norm.weight[10] " GATED NORMS_W HEAD},
    {"{" TYPE("qwen3") GQA ", 'head_dim': 10, 'attention_bias': true, 'use_sliding_window': true, 'sliding_window': 7, 'max_window_layers': 1}",
     "{'bias': ['q', 'k', 'v', 'o'], 'decoder': {'blocks': [{'window': 0}, {'window': 7}]}}", NULL},
};

static const struct family_case OLMO[] = {
    {"{" TYPE("olmo") "'x': null}", "{'C': 4096, 'V': 50304, 'max_positions': 2048, 'norm': 'layer_nop', 'norm_eps': 1e-5, 'pad': 1, 'bos': -1, "
     "'eos': 50279, 'tied': 0, 'clip_qkv': 0.0, 'mlp': 'swiglu', 'bias': []}", NULL},
    {"{" TYPE("olmo") DIMS ", 'clip_qkv': 8, 'tie_word_embeddings': true}", "{'clip_qkv': 8.0, " EACH("'G': 6, 'D': 8") "}",
     EMBED "model.layers.0.self_attn.q_proj.weight[48,48] model.layers.0.self_attn.k_proj.weight[48,48] "
     "model.layers.0.self_attn.v_proj.weight[48,48] model.layers.0.self_attn.o_proj.weight[48,48] " GATED},
    {"{" TYPE("olmo") GQA ", 'clip_qkv': null, 'attention_bias': true}", "{'clip_qkv': 0.0, 'bias': ['q', 'k', 'v', 'o']}",
     EMBED QKVO QKV_B "model.layers.0.self_attn.o_proj.bias[48] " GATED HEAD},
    {"{" TYPE("olmo2") "'x': null}", "{'C': 4096, 'V': 50304, 'max_positions': 2048, 'norm_eps': 1e-5, 'pad': 1, 'bos': -1, 'eos': 50279, 'tied': 0, "
     "'mlp': 'swiglu'}", NULL},
    {"{" TYPE("olmo2") GQA "}", "{'norm_place': 'post_sublayer', 'qk_norm': 'full', 'norm': 'rms', 'residual': 'sequential', 'bias': []}",
     EMBED QKVO "model.layers.0.self_attn.q_norm.weight[48] model.layers.0.self_attn.k_norm.weight[24] " GATED
     "model.layers.0.post_attention_layernorm.weight[48] model.layers.0.post_feedforward_layernorm.weight[48] model.norm.weight[48] " HEAD},
    {"{" TYPE("olmo2") GQA ", 'attention_bias': true, 'rms_norm_eps': 1e-6, 'rope_theta': 500000}",
     "{'bias': ['q', 'k', 'v', 'o'], 'norm_eps': 1e-6, 'rope': {'theta': 500000.0}}", NULL},
};

static const struct family_case GEMMA[] = {
    {"{" TYPE("gemma") "'x': null}", "{'C': 3072, 'V': 256000, 'max_positions': 8192, 'norm': 'rms1p', 'norm_eps': 1e-6, 'mlp': 'geglu_tanh', 'tied': 1, "
     "'bos': 2, 'eos': 1, 'pad': 0, 'bias': [], 'rope': {'dims': 256}, 'attn_scale': 0.0625, 'embed_scale': 55.42562484741211}", NULL},
    {"{" TYPE("gemma") "'torch_dtype': 'bfloat16', 'hidden_act': 'gelu', 'num_hidden_layers': 2}",
     "{'embed_scale': 55.5, 'mlp': 'geglu_tanh', " EACH("'H': 16, 'G': 16, 'D': 256, 'F': 24576") "}", NULL},
    {"{" TYPE("gemma") "'dtype': 'float16', 'hidden_activation': null, 'attention_bias': true, 'num_attention_heads': 8, 'num_key_value_heads': 1}",
     "{'embed_scale': 55.4375, 'bias': ['q', 'k', 'v', 'o']}", NULL},
    {"{" TYPE("gemma") GQA ", 'head_dim': 10, 'use_bidirectional_attention': false}", "{" EACH("'D': 10") "}",
     EMBED QKVO_10 GATED "model.layers.0.input_layernorm.weight[48] model.layers.0.post_attention_layernorm.weight[48] model.norm.weight[48]"},
    {"{" TYPE("gemma") GQA ", 'head_dim': 10, 'tie_word_embeddings': false, 'hidden_activation': 'gelu_pytorch_tanh'}", "{'tied': 0}",
     EMBED QKVO_10 GATED NORMS_W HEAD},
};

static const struct family_case PHI[] = {
    {"{" TYPE("phi") "'x': null}", "{'C': 2048, 'V': 51200, 'max_positions': 2048, 'norm': 'layer', 'norm_eps': 1e-5, 'residual': 'parallel_one_norm', "
     "'mlp': 'gelu_tanh', 'bias': ['q', 'k', 'v', 'o', 'mlp_in', 'mlp_out', 'norm', 'head'], 'tied': 0, 'bos': 1, 'eos': 2, 'rope': {'dims': 32}}", NULL},
    {"{" TYPE("phi") GQA ", 'qk_layernorm': false}", "{" SCALE_8 ", 'rope': {'dims': 4}}",
     EMBED "model.layers.0.self_attn.q_proj.weight[48,48] model.layers.0.self_attn.k_proj.weight[24,48] model.layers.0.self_attn.v_proj.weight[24,48] "
     "model.layers.0.self_attn.dense.weight[48,48] model.layers.0.self_attn.dense.bias[48] " QKV_B "model.layers.0.mlp.fc1.weight[20,48] "
     "model.layers.0.mlp.fc1.bias[20] model.layers.0.mlp.fc2.weight[48,20] model.layers.0.mlp.fc2.bias[48] model.layers.0.input_layernorm.weight[48] "
     "model.layers.0.input_layernorm.bias[48] model.final_layernorm.weight[48] model.final_layernorm.bias[48] lm_head.bias[37] " HEAD},
    {"{" TYPE("phi") DIMS ", 'partial_rotary_factor': 1.0, 'hidden_act': 'gelu', 'tie_word_embeddings': true}",
     "{'mlp': 'gelu_erf', 'tied': 1, 'rope': {'dims': 8}, " EACH("'G': 6") "}", NULL},
    {"{" TYPE("phi") GQA ", 'partial_rotary_factor': 1.0, 'rope_parameters': {'partial_rotary_factor': 0.75, 'rope_type': 'default', 'rope_theta': 99}}",
     "{'rope': {'dims': 6, 'theta': 99.0}}", NULL},
    {"{" TYPE("phi") GQA ", 'head_dim': 10, 'partial_rotary_factor': 0.4, 'rope_scaling': {'type': 'linear', 'factor': 2.0}, 'hidden_act': 'relu'}",
     "{'mlp': 'relu', 'rope': {'dims': 4, 'kind': 'linear'}}", NULL},
    {"{" TYPE("phi3") "'x': null}", "{'C': 3072, 'V': 32064, 'max_positions': 4096, 'norm': 'rms', 'norm_eps': 1e-5, 'mlp': 'swiglu', 'bias': [], "
     "'tied': 0, 'bos': 1, 'eos': 32000, 'pad': 32000, 'rope': {'dims': 96}, 'residual': 'sequential'}", NULL},
    {"{" TYPE("phi3") GQA ", 'attention_bias': false, 'sliding_window': 7}", "{" EACH("'window': 7") "}",
     EMBED "model.layers.0.self_attn.qkv_proj.weight[96,48] model.layers.0.self_attn.o_proj.weight[48,48] model.layers.0.mlp.gate_up_proj.weight[40,48] "
     "model.layers.0.mlp.down_proj.weight[48,20] " NORMS_W HEAD},
    {"{" TYPE("phi3") DIMS ", 'partial_rotary_factor': 0.75, 'lm_head_bias': false}", "{'rope': {'dims': 6}, " EACH("'window': 0, 'G': 6") "}", NULL},
    /* the outer original_max_position_embeddings is 4096 when absent, whatever stands inside; the factor follows from it */
    {"{" TYPE("phi3") GQA ", 'max_position_embeddings': 131072, 'rope_scaling': {'type': 'su', 'original_max_position_embeddings': 1024, "
     "'long_factor': [1, 2, 3, 4], 'short_factor': [1, 1, 1, 1.25]}}",
     "{'rope': {'kind': 'longrope', 'original_max_positions': 4096, 'factor': 32.0, 'attention_factor': 1.1902380714238083, 'long_factor': [1.0, 2.0, 3.0, 4.0]}}", NULL},
    {"{" TYPE("phi3") GQA ", 'max_position_embeddings': 128, 'original_max_position_embeddings': 32, 'partial_rotary_factor': 0.5, 'rope_parameters': "
     "{'rope_type': 'longrope', 'long_factor': [1, 2], 'short_factor': [1, 1.5], 'attention_factor': 1.5, 'rope_theta': 77.0}}",
     "{'rope': {'original_max_positions': 32, 'factor': 4.0, 'attention_factor': 1.5, 'dims': 4, 'theta': 77.0}}", NULL},
};

static const struct family_case STABLELM[] = {
    {"{" TYPE("stablelm") "'num_hidden_layers': 2}", "{'C': 2560, 'V': 50304, 'max_positions': 4096, 'norm': 'layer', 'norm_eps': 1e-5, 'mlp': 'swiglu', "
     "'bias': ['norm'], 'bos': 0, 'eos': 0, 'tied': 0, 'residual': 'sequential', 'qk_norm': 'none', 'rope': {'dims': 20}, " EACH("'G': 32, 'F': 6912") "}", NULL},
    {"{" TYPE("stablelm") GQA "}", "{'rope': {'dims': 2}}", EMBED QKVO GATED NORMS_W NORMS_B HEAD},
    {"{" TYPE("stablelm") GQA ", 'use_qkv_bias': true, 'use_parallel_residual': true, 'partial_rotary_factor': 0.5, 'tie_word_embeddings': true}",
     "{'residual': 'parallel_one_norm', 'bias': ['q', 'k', 'v', 'norm'], 'rope': {'dims': 4}}",
     EMBED QKVO QKV_B GATED "model.layers.0.input_layernorm.weight[48] model.layers.0.input_layernorm.bias[48] model.norm.weight[48] model.norm.bias[48]"},
    {"{" TYPE("stablelm") GQA ", 'qk_layernorm': true, 'head_dim': 8}", "{'qk_norm': 'per_head'}",
     EMBED QKVO GATED NORMS_W NORMS_B "model.layers.0.self_attn.q_layernorm.norms.0.weight[8] model.layers.0.self_attn.q_layernorm.norms.1.weight[8] "
     "model.layers.0.self_attn.q_layernorm.norms.2.weight[8] model.layers.0.self_attn.q_layernorm.norms.3.weight[8] "
     "model.layers.0.self_attn.q_layernorm.norms.4.weight[8] model.layers.0.self_attn.q_layernorm.norms.5.weight[8] "
     "model.layers.0.self_attn.k_layernorm.norms.0.weight[8] model.layers.0.self_attn.k_layernorm.norms.1.weight[8] "
     "model.layers.0.self_attn.k_layernorm.norms.2.weight[8] " HEAD},
    {"{" TYPE("stablelm") DIMS ", 'num_key_value_heads': 1, 'qk_layernorm': true, 'use_parallel_residual': true}", "{" EACH("'G': 1") "}", NULL},
};

static const struct family_case STARCODER2[] = {
    {"{" TYPE("starcoder2") "'num_hidden_layers': 2}", "{'C': 3072, 'V': 49152, 'max_positions': 4096, 'norm': 'layer', 'norm_eps': 1e-5, "
     "'mlp': 'gelu_tanh', 'bias': ['q', 'k', 'v', 'o', 'mlp_in', 'mlp_out', 'norm'], 'tied': 1, 'bos': 50256, 'eos': 50256, 'rope': {'dims': 128}, "
     "'residual': 'sequential', " EACH("'H': 24, 'G': 2, 'F': 12288, 'window': 0") "}", NULL},
    {"{" TYPE("starcoder2") GQA ", 'mlp_type': 'default', 'norm_type': 'layer_norm', 'sliding_window': 9, 'tie_word_embeddings': false}",
     "{'tied': 0, " EACH("'window': 9") "}",
     EMBED QKVO QKV_B "model.layers.0.self_attn.o_proj.bias[48] model.layers.0.mlp.c_fc.weight[20,48] model.layers.0.mlp.c_fc.bias[20] "
     "model.layers.0.mlp.c_proj.weight[48,20] model.layers.0.mlp.c_proj.bias[48] " NORMS_W NORMS_B HEAD},
    {"{" TYPE("starcoder2") GQA ", 'use_bias': false, 'hidden_act': 'gelu', 'head_dim': 10}", "{'bias': ['norm'], 'mlp': 'gelu_erf', 'tied': 1}",
     EMBED QKVO_10 "model.layers.0.mlp.c_fc.weight[20,48] model.layers.0.mlp.c_proj.weight[48,20] model.layers.0.input_layernorm.bias[48] "
     "model.layers.0.post_attention_layernorm.bias[48] model.norm.bias[48] model.layers.0.input_layernorm.weight[48] "
     "model.layers.0.post_attention_layernorm.weight[48] model.norm.weight[48]"},
};

static const struct family_case LLAMA[] = {
    {"{" TYPE("llama") "'x': null}", "{'C': 4096, 'V': 32000, 'max_positions': 2048, 'bos': 1, 'eos': 2, 'tied': 0}", NULL},
    {"{" TYPE("llama") GQA ", 'attention_bias': true, 'mlp_bias': true}", "{'norm': 'rms'}",
     EMBED QKVO QKV_B "model.layers.0.self_attn.o_proj.bias[48] model.layers.0.mlp.gate_proj.bias[20] model.layers.0.mlp.up_proj.bias[20] "
     "model.layers.0.mlp.down_proj.bias[48] " GATED NORMS_W HEAD},
    {"{" TYPE("mistral") GQA ", 'sliding_window': 5, 'layer_types': ['full_attention', 'sliding_attention']}",
     "{'decoder': {'blocks': [{'window': 0}, {'window': 5}]}}", NULL},
};

static const struct family_refusal REFUSALS[] = {
    {"{" TYPE("qwen2") GQA ", 'use_sliding_window': true, 'layer_types': ['chunked_attention', 'full_attention']}", ERR_UNSUPPORTED, "chunked_attention"},
    {"{" TYPE("qwen2") GQA ", 'sliding_window': 5, 'layer_types': ['sliding_attention', 'full_attention']}", ERR_UNSUPPORTED, "layer_types"},
    {"{" TYPE("qwen2") DIMS "}", ERR_INPUT, "num_key_value_heads 32"}, /* absent means 32, not H */
    {"{" TYPE("qwen2") GQA ", 'use_mrope': true}", ERR_UNSUPPORTED, "use_mrope"},
    {"{" TYPE("qwen2") GQA ", 'qk_layernorm': true}", ERR_UNSUPPORTED, "qk_layernorm"},
    {"{" TYPE("qwen2") GQA ", 'partial_rotary_factor': 0.5}", ERR_UNSUPPORTED, "partial_rotary_factor"},
    {"{" TYPE("qwen3") GQA ", 'mlp_bias': true}", ERR_UNSUPPORTED, "mlp_bias"},
    {"{" TYPE("qwen3") GQA ", 'rope_parameters': {'rope_type': 'default', 'partial_rotary_factor': 0.5}}", ERR_UNSUPPORTED, "partial_rotary_factor"},
    {"{" TYPE("olmo") GQA ", 'clip_qkv': 0}", ERR_INPUT, "clip_qkv"},
    {"{" TYPE("olmo") GQA ", 'rms_norm_eps': 1e-5}", ERR_UNSUPPORTED, "rms_norm_eps"},
    {"{" TYPE("olmo2") GQA ", 'clip_qkv': 8.0}", ERR_UNSUPPORTED, "clip_qkv"},
    {"{" TYPE("olmo2") GQA ", 'sliding_window': 8}", ERR_UNSUPPORTED, "sliding_window"},
    {"{" TYPE("gemma") GQA ", 'hidden_act': 'silu'}", ERR_UNSUPPORTED, "hidden_act"},
    {"{" TYPE("gemma") GQA ", 'hidden_activation': 'gelu'}", ERR_UNSUPPORTED, "hidden_activation"},
    {"{" TYPE("gemma") GQA ", 'use_bidirectional_attention': true}", ERR_UNSUPPORTED, "use_bidirectional_attention"},
    {"{" TYPE("gemma") GQA ", 'torch_dtype': 'int8'}", ERR_UNSUPPORTED, "int8"},
    {"{" TYPE("gemma") GQA ", 'final_logit_softcapping': 30.0}", ERR_UNSUPPORTED, "final_logit_softcapping"},
    {"{" TYPE("phi") GQA ", 'qk_layernorm': true}", ERR_UNSUPPORTED, "qk_layernorm"},
    {"{" TYPE("phi") GQA ", 'hidden_act': 'silu'}", ERR_UNSUPPORTED, "silu"},
    {"{" TYPE("phi") GQA ", 'partial_rotary_factor': 1.5}", ERR_INPUT, "partial_rotary_factor"},
    {"{" TYPE("phi") GQA ", 'partial_rotary_factor': 0.1}", ERR_INPUT, "rotary dimensions"},
    {"{" TYPE("phi") GQA ", 'partial_rotary_factor': 0.4}", ERR_INPUT, "even"},
    {"{" TYPE("phi") GQA ", 'layer_types': ['full_attention', 'full_attention']}", ERR_UNSUPPORTED, "layer_types"},
    {"{" TYPE("phi3") GQA ", 'attention_bias': true}", ERR_UNSUPPORTED, "attention_bias"},
    {"{" TYPE("phi3") GQA ", 'rope_scaling': {'type': 'linear', 'factor': 2.0}}", ERR_UNSUPPORTED, "longrope"},
    {"{" TYPE("phi3") GQA ", 'rope_scaling': {'type': 'longrope', 'long_factor': [1, 2], 'short_factor': [1, 1, 1, 1]}}", ERR_INPUT, "long_factor"},
    {"{" TYPE("stablelm") GQA ", 'head_dim': 10}", ERR_UNSUPPORTED, "head_dim 10"},
    {"{" TYPE("stablelm") GQA ", 'rope_pct': 0.25}", ERR_UNSUPPORTED, "rope_pct"},
    {"{" TYPE("stablelm") GQA ", 'norm_eps': 1e-5}", ERR_UNSUPPORTED, "norm_eps"},
    {"{" TYPE("starcoder2") GQA ", 'mlp_type': 'gated'}", ERR_UNSUPPORTED, "mlp_type"},
    {"{" TYPE("starcoder2") GQA ", 'norm_type': 'rms_norm'}", ERR_UNSUPPORTED, "norm_type"},
    {"{" TYPE("llama") GQA ", 'use_parallel_residual': true}", ERR_UNSUPPORTED, "use_parallel_residual"},
    {"{" TYPE("llama") GQA ", 'qk_layernorm': true}", ERR_UNSUPPORTED, "qk_layernorm"},
};

static void test_qwen(void **state) { (void)state; family_cases_check(QWEN, COUNT_OF(QWEN)); }
static void test_olmo(void **state) { (void)state; family_cases_check(OLMO, COUNT_OF(OLMO)); }
static void test_gemma(void **state) { (void)state; family_cases_check(GEMMA, COUNT_OF(GEMMA)); }
static void test_phi(void **state) { (void)state; family_cases_check(PHI, COUNT_OF(PHI)); }
static void test_stablelm(void **state) { (void)state; family_cases_check(STABLELM, COUNT_OF(STABLELM)); }
static void test_starcoder2(void **state) { (void)state; family_cases_check(STARCODER2, COUNT_OF(STARCODER2)); }
static void test_llama(void **state) { (void)state; family_cases_check(LLAMA, COUNT_OF(LLAMA)); }
static void test_refusals(void **state) { (void)state; family_refusals_check(REFUSALS, COUNT_OF(REFUSALS)); }

/* ---- another family's model --------------------------------------------------------------------------------------- */

/* `config` under the name of `family`, with nothing of its source. */
static enum code held(const char *config, const char *family, void (*change)(struct arch *a), struct arch *back)
{
    struct arch a;
    char *text = NULL;
    assert_ok(family_config(&a, config));
    free(a.source_config);
    a.source_config = NULL;
    snprintf(a.family, sizeof a.family, "%s", family);
    if (change)
        change(&a);
    enum code c = arch_to_config_json(&a, DT_NONE, &text);
    if (c == OK && back)
        assert_ok(arch_from_config_json(back, text, strlen(text), "result"));
    free(text);
    arch_free(&a);
    return c;
}

static void neox(struct arch *a) { a->residual = RESIDUAL_PARALLEL_TWO_NORMS; }
static void no_head_bias(struct arch *a) { a->bias &= ~(unsigned)BIAS_HEAD; }
static void whole_and_other_scale(struct arch *a) { a->attn_scale = 1; }
static void rounding(struct arch *a) { a->attn_scale *= 1 + 1e-15; }
static void rotary_6(struct arch *a) { a->rope.dims = 6; }
static void one_windowed(struct arch *a) { a->stack[STACK_DEC].block[1].window = 3; }
static void two_windows(struct arch *a) { a->stack[STACK_DEC].block[0].window = 4; a->stack[STACK_DEC].block[1].window = 3; }
static void narrow_values(struct arch *a) { a->stack[STACK_DEC].block[0].Dv = 4; }
static void softcap(struct arch *a) { a->logit_softcap = 30; }
static void clipped(struct arch *a) { a->clip_qkv = 2; }
static void centred(struct arch *a) { a->norm = NORM_RMS; }
static void learned(struct arch *a) { a->pos = POS_LEARNED; }
static void scaled(struct arch *a) { a->embed_scale = 7; }
static void layer_scale(struct arch *a) { a->stack[STACK_DEC].block[1].scale = 0.5; }
static void ungated(struct arch *a) { a->mlp = MLP_GELU_TANH; }

static void test_what_phi_and_llama_hold(void **state)
{
    (void)state;
    static const char phi[] = "{" TYPE("phi") GQA "}", olmo[] = "{" TYPE("olmo") GQA "}", gemma[] = "{" TYPE("gemma") GQA ", 'head_dim': 10}";
    struct arch b;
    assert_ok(held(phi, "phi", rotary_6, &b));
    assert_int_equal(b.rope.dims, 6);
    arch_free(&b);
    assert_ok(held(phi, "phi", rounding, NULL));
    static const struct { const char *config, *family; void (*change)(struct arch *a); const char *part; } no[] = {
        {phi, "phi", neox, "residual = \"parallel_two_norms\""}, {phi, "phi", no_head_bias, "model's bias"}, {phi, "phi", whole_and_other_scale, "attn_scale"},
        {phi, "phi", one_windowed, "blocks[1].window"},          {phi, "phi", narrow_values, "blocks[0].Dv"}, {phi, "phi", softcap, "logit_softcap"},
        {phi, "phi", clipped, "clip_qkv"},                       {phi, "phi", learned, "model's pos"},          {phi, "phi", scaled, "embed_scale"},
        {phi, "phi", layer_scale, "blocks[1]"},                  {phi, "llama", NULL, "model"},                 {olmo, "phi", NULL, "model"},
        {olmo, "llama", NULL, "norm = \"layer_nop\""},           {gemma, "llama", NULL, "model's"},             {gemma, "gemma", scaled, "embed_scale"},
        {olmo, "qwen2", centred, "model's bias"},                {olmo, "qwen3", centred, "qk_norm"},           {olmo, "olmo2", centred, "norm_place"},
        {olmo, "mistral", two_windows, "norm"},                  {olmo, "starcoder2", centred, "model"},        {olmo, "stablelm", centred, "norm"},
        {olmo, "phi3", ungated, "model"},
    };
    for (size_t i = 0; i < COUNT_OF(no); i++) {
        enum code c = held(no[i].config, no[i].family, no[i].change, NULL);
        if (c == OK)
            print_error("%s holds case %zu\n", no[i].family, i);
        assert_refused(c, ERR_UNSUPPORTED, no[i].part);
    }
    /* OLMo after centring and with weights in its norms */
    assert_ok(held(olmo, "llama", centred, &b));
    assert_int_equal(b.norm, NORM_RMS);
    assert_true(b.norm_eps >= 1e-5 && b.norm_eps <= 1e-5);
    assert_int_equal(b.eos, 50279);
    arch_free(&b);
    assert_ok(held(olmo, "phi3", centred, NULL));
}

/* sqrt(C) as it was rounded for bf16 is still gemma's, in a config of any type. */
static void as_f32(struct arch *a) { a->dtype = DT_F32; }

static void test_gemma_scale_by_type(void **state)
{
    (void)state;
    struct arch b;
    assert_ok(held("{" TYPE("gemma") "'torch_dtype': 'bfloat16'}", "gemma", as_f32, &b));
    assert_true(fabs(b.embed_scale - sqrt(3072)) < 1e-5);
    arch_free(&b);
}

/* Any rotated part of any head comes back, whatever dims / D rounds to. */
static void test_partial_rotary_survives(void **state)
{
    (void)state;
    for (int D = 2; D <= 256; D += D < 40 ? 1 : 13)
        for (int r = 2; r <= D; r += 2) {
            char config[256];
            struct arch a, b;
            char *text;
            snprintf(config, sizeof config, "{" TYPE("phi") DIMS ", 'head_dim': %d, 'partial_rotary_factor': 1.0, 'rope_theta': 10000}", 2 * D);
            assert_ok(family_config(&a, config));
            free(a.source_config);
            a.source_config = NULL;
            for (int l = 0; l < 2; l++)
                a.stack[STACK_DEC].block[l].D = a.stack[STACK_DEC].block[l].Dv = D;
            a.attn_scale = 1 / sqrt((double)D);
            a.rope.dims = r;
            assert_ok(arch_to_config_json(&a, DT_NONE, &text));
            assert_ok(arch_from_config_json(&b, text, strlen(text), "result"));
            assert_int_equal(b.rope.dims, r);
            free(text);
            arch_free(&a);
            arch_free(&b);
        }
}

static void test_real_configs(void **state)
{
    (void)state;
    char *path = data_path("configs/phi-2.json"), *bytes;
    size_t n;
    struct arch a;
    if (!path)
        return;
    assert_ok(io_read_all(path, 1 << 20, &bytes, &n));
    assert_ok(arch_from_config_json(&a, bytes, n, path));
    assert_int_equal(arch_parameters(&a), 2779683840); /* what transformers counts for phi-2 */
    assert_int_equal(a.rope.dims, 32);
    assert_int_equal(a.dtype, DT_F16);
    arch_free(&a);
    free(bytes);
    free(path);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_qwen), cmocka_unit_test(test_olmo), cmocka_unit_test(test_gemma), cmocka_unit_test(test_phi),
        cmocka_unit_test(test_stablelm), cmocka_unit_test(test_starcoder2), cmocka_unit_test(test_llama), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_what_phi_and_llama_hold), cmocka_unit_test(test_gemma_scale_by_type),
        cmocka_unit_test(test_partial_rotary_survives), cmocka_unit_test(test_real_configs),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
