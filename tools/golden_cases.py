"""Tiny models of Hugging Face transformers, one for each thing a config.json of a family can say: the cases of
tools/make_goldens.py, tools/check-transformers and tools/check-targets. Weights are wide random numbers, so that a wrong
rotary angle, mask, scale or bias shows in the first digits. Needs: pip install transformers torch"""
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import safetensors.torch
import torch
import transformers

torch.set_num_threads(1)
TOKENS = 41  # beyond the trained positions of every scaled case, and beyond every window
GREEDY = 8   # continuation after the TOKENS
F32, BF16, F16 = "float32", "bfloat16", "float16"
SIX = dict(hidden_size=24, num_attention_heads=6, num_key_value_heads=3)                          # D = 4
FOUR = dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=16)  # D = 8, for partial rotary
COMMON = dict(vocab_size=40, bos_token_id=1, eos_token_id=2)
ROPED = dict(intermediate_size=20, num_hidden_layers=2, max_position_embeddings=64)
NGPT = dict(n_embd=24, n_layer=2, n_head=6, n_inner=32, n_positions=50)

# What every case of a class has unless it says otherwise.
BASE = {
    "Llama": dict(ROPED, vocab_size=48, hidden_size=16, num_attention_heads=2, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True),
    "Mistral": dict(ROPED, vocab_size=48, hidden_size=16, num_attention_heads=2, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True),
    "Qwen2": dict(ROPED, **SIX),
    "Qwen3": dict(ROPED, hidden_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=8),
    "Olmo": dict(ROPED, **SIX),
    "Olmo2": dict(ROPED, **SIX),
    "Gemma": dict(ROPED, hidden_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=8),
    "Phi": {**ROPED, **FOUR},
    "Phi3": {**ROPED, **FOUR, "pad_token_id": 0, "original_max_position_embeddings": 64},
    "StableLm": {**ROPED, **FOUR},
    "Starcoder2": dict(ROPED, **SIX),
    "GPT2": NGPT,
    "GPTBigCode": NGPT,
    "GPTNeo": dict(hidden_size=24, num_layers=2, num_heads=6, intermediate_size=32, max_position_embeddings=50, window_size=7,
                   attention_types=[[["global", "local"], 1]]),
    "GPTNeoX": {**ROPED, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 16},
    "GPTJ": dict(n_embd=32, n_layer=2, n_head=4, n_inner=16, n_positions=64, rotary_dim=4),
    "OPT": dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=6, ffn_dim=32, max_position_embeddings=50),
    "Bloom": dict(hidden_size=18, n_layer=2, n_head=6),
    "Mpt": dict(d_model=18, n_layers=2, n_heads=6, max_seq_len=64),
    "Falcon": dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=6, ffn_hidden_size=32, max_position_embeddings=64),
}


def rope(kind, **settings):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


def longrope(n):
    return {"long_factor": [1 + i / 2 for i in range(n)], "short_factor": [1 + i / 8 for i in range(n)]}


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MHA6, MHA4 = dict(num_key_value_heads=6), dict(num_key_value_heads=4)

# ---- cases: name -> (class, stored type, what differs from BASE, then by keyword: edits of the saved files) ------------
#   config   top-level keys of the saved config.json to set or, with None, to remove
#   bare     remove every key that has the class's default value
#   strip    remove this prefix from every tensor name; add: more tensors, name -> (shape, type) or the name to copy
#   seed     other random numbers, where the greedy continuation was too close a race
#   note     what a reader of the golden has to know


def case(kind, dtype=BF16, settings=None, **edits):
    return kind, dtype, settings or {}, edits


def masks(name, n, positions, dtype=F32):
    """The causal masks that old files carry as buffers."""
    return {name.format(i): ((1, 1, positions, positions), dtype) for i in range(n)}


CASES = {
    "llama-mha": case("Llama", F32, dict(num_attention_heads=4, num_key_value_heads=4, head_dim=4)),
    "llama-biases-untied": case("Llama", F32, dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=False)),
    "llama-wide-heads-gqa": case("Llama", BF16, dict(hidden_size=24, num_attention_heads=6, num_key_value_heads=3, head_dim=8)),
    "llama-rope-linear": case("Llama", BF16, rope("linear", factor=4.0)),
    "llama-rope-dynamic": case("Llama", BF16, dict(max_position_embeddings=16, **rope("dynamic", factor=2.0))),
    "llama-rope-llama3": case("Llama", BF16, rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)),
    "llama-rope-llama3-old": case("Llama", BF16, {}, config=dict(
        rope_parameters=None, rope_theta=9000.0, dtype=None, torch_dtype=BF16, rope_scaling={**LLAMA3, "original_max_position_embeddings": 16})),
    "llama-rope-yarn": case("Llama", BF16, rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama-rope-longrope": case("Llama", BF16, rope("longrope", factor=4.0, original_max_position_embeddings=16, **longrope(8))),
    "llama-bare": case("Llama", BF16, dict(num_attention_heads=4, num_key_value_heads=4, head_dim=None, tie_word_embeddings=False),
                       bare=True, config=dict(num_key_value_heads=None, head_dim=None)),
    "llama-old-file": case("Llama", F16, dict(tie_word_embeddings=False), add={
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": ((8,), F32) for i in range(2)}),
    "mistral-window": case("Mistral", F16, dict(sliding_window=7)),
    "mistral-bare": case("Mistral", BF16, dict(hidden_size=32, intermediate_size=12, num_attention_heads=8, num_key_value_heads=8, head_dim=None, tie_word_embeddings=False),
                         bare=True, note="8 K/V heads and a window of 4096 are the defaults"),
    "qwen2-mha": case("Qwen2", BF16, MHA6),
    "qwen2-gqa-tied": case("Qwen2", BF16, dict(tie_word_embeddings=True, **rope("default", rope_theta=1e6))),
    "qwen2-windows": case("Qwen2", BF16, dict(num_hidden_layers=3, intermediate_size=16, use_sliding_window=True, sliding_window=7, max_window_layers=1)),
    "qwen2-windows-old": case("Qwen2", BF16, dict(use_sliding_window=True, sliding_window=7, max_window_layers=1),
                              config=dict(layer_types=None, rope_parameters=None, rope_theta=9000.0, dtype=None, torch_dtype=BF16)),
    "qwen2-hub": case("Qwen2", BF16, MHA6, config=dict(layer_types=None, sliding_window=7, max_window_layers=1, use_sliding_window=False,
                                                     rope_parameters=None, rope_theta=1000000.0, use_mrope=False),
                      note="sliding_window counts only with use_sliding_window"),
    "qwen2-bare": case("Qwen2", BF16, dict(vocab_size=16, hidden_size=64, num_attention_heads=32, num_key_value_heads=32, num_hidden_layers=1, intermediate_size=8),
                       bare=True, note="32 K/V heads are the default"),
    "qwen3-gqa": case("Qwen3", BF16),
    "qwen3-mha-tied": case("Qwen3", BF16, dict(tie_word_embeddings=True, **MHA4)),
    "qwen3-biases-windows": case("Qwen3", BF16, dict(attention_bias=True, use_sliding_window=True, sliding_window=7, max_window_layers=1)),
    "qwen3-bare": case("Qwen3", BF16, dict(hidden_size=16, num_attention_heads=1, num_key_value_heads=1, head_dim=128, num_hidden_layers=1),
                       bare=True, note="head_dim 128 is the default"),
    "olmo-mha": case("Olmo", BF16, MHA6),
    "olmo-gqa-tied-biases": case("Olmo", BF16, dict(tie_word_embeddings=True, attention_bias=True)),
    "olmo-clip": case("Olmo", BF16, dict(clip_qkv=0.75), note="most of q, k and v is clipped"),
    "olmo-bare": case("Olmo", BF16, MHA6, bare=True, config=dict(num_key_value_heads=None)),
    "olmo2-mha": case("Olmo2", BF16, MHA6),
    "olmo2-gqa": case("Olmo2", BF16, rope("default", rope_theta=500000.0)),
    "olmo2-bare": case("Olmo2", BF16, MHA6, bare=True, config=dict(num_key_value_heads=None)),
    "gemma-mha": case("Gemma", BF16, MHA4, note="transformers keeps the embedding's scale in the type of the weights: sqrt(24) is 4.90625 in bf16"),
    "gemma-gqa": case("Gemma", BF16),
    "gemma-f32": case("Gemma", F32, dict(hidden_size=24, num_attention_heads=2, num_key_value_heads=1), note="sqrt(24) is not rounded"),
    "gemma-hub": case("Gemma", BF16, MHA4, config=dict(hidden_act="gelu", hidden_activation=None, rope_parameters=None, rope_theta=10000.0,
                                                      tie_word_embeddings=None), note="\"gelu\" means the tanh form in this family"),
    "gemma-bare": case("Gemma", BF16, dict(hidden_size=8, num_attention_heads=1, num_key_value_heads=1, head_dim=256, num_hidden_layers=1),
                       bare=True, note="head_dim 256 is the default"),
    "gemma-bare-heads": case("Gemma", BF16, dict(hidden_size=16, num_attention_heads=16, num_key_value_heads=16, head_dim=4), bare=True,
                             note="16 K/V heads are the default"),
    "phi-mha": case("Phi", BF16, MHA4),
    "phi-gqa": case("Phi", BF16, rope("default", partial_rotary_factor=0.75)),
    "phi-gelu": case("Phi", BF16, dict(hidden_act="gelu", layer_norm_eps=1e-3)),
    "phi-hub": case("Phi", F16, MHA4, config=dict(rope_parameters=None, rope_theta=10000.0, rope_scaling=None, partial_rotary_factor=0.25,
                                                qk_layernorm=False, dtype=None, torch_dtype=F16)),
    "phi-bare": case("Phi", BF16, MHA4, bare=True, config=dict(num_key_value_heads=None, rope_parameters=None)),
    "phi3-mha": case("Phi3", BF16, MHA4),
    "phi3-gqa-window": case("Phi3", BF16, dict(sliding_window=7)),
    "phi3-partial": case("Phi3", BF16, rope("default", partial_rotary_factor=0.75)),
    "phi3-longrope": case("Phi3", BF16, dict(original_max_position_embeddings=16, **rope("longrope", **longrope(4)))),
    "phi3-longrope-hub": case("Phi3", BF16, dict(original_max_position_embeddings=52), config=dict(
        rope_parameters=None, rope_theta=10000.0, rope_scaling={"type": "longrope", **longrope(4)}),
        note="within the original positions: the short factors and the factor on cos and sin"),
    "phi3-longrope-partial": case("Phi3", BF16, dict(original_max_position_embeddings=16, **rope("longrope", partial_rotary_factor=0.75, **longrope(3)))),
    "phi3-bare": case("Phi3", BF16, dict(MHA4, original_max_position_embeddings=4096), bare=True,
                      config=dict(num_key_value_heads=None, rope_parameters=None)),
    "stablelm-mha": case("StableLm", BF16, MHA4),
    "stablelm-gqa-biases-tied": case("StableLm", BF16, dict(use_qkv_bias=True, tie_word_embeddings=True, **rope("default", partial_rotary_factor=0.75))),
    "stablelm-parallel": case("StableLm", BF16, dict(use_parallel_residual=True)),
    "stablelm-qk-layernorm": case("StableLm", BF16, dict(qk_layernorm=True)),
    "stablelm-hub": case("StableLm", BF16, MHA4, config=dict(rope_parameters=None, rope_theta=10000, partial_rotary_factor=0.5, rope_scaling=None,
                                                           rotary_scaling_factor=None, layer_norm_eps=1e-5)),
    "stablelm-bare": case("StableLm", BF16, MHA4, bare=True, config=dict(rope_parameters=None), note="a quarter of the head is rotated by default"),
    "starcoder2-gqa": case("Starcoder2", BF16),
    "starcoder2-mha-window": case("Starcoder2", BF16, dict(MHA6, sliding_window=7, intermediate_size=16)),
    "starcoder2-no-bias-untied": case("Starcoder2", BF16, dict(use_bias=False, tie_word_embeddings=False, hidden_act="gelu")),
    "starcoder2-bare": case("Starcoder2", BF16, {}, bare=True, seed=1, config=dict(rope_parameters=None), note="2 K/V heads are the default"),
    "gpt2-plain": case("GPT2", BF16),
    "gpt2-f32": case("GPT2", F32, dict(n_embd=16, n_head=4, n_inner=None)),
    "gpt2-untied": case("GPT2", BF16, dict(tie_word_embeddings=False, activation_function="gelu")),
    "gpt2-relu": case("GPT2", BF16, dict(activation_function="relu", layer_norm_epsilon=1e-3)),
    "gpt2-inverse-layer": case("GPT2", BF16, dict(scale_attn_by_inverse_layer_idx=True, n_layer=3)),
    "gpt2-no-scale": case("GPT2", BF16, dict(scale_attn_weights=False)),
    "gpt2-hub": case("GPT2", BF16, {}, strip="transformer.", add=masks("h.{}.attn.bias", 2, 50, F16), bare=True,
                     config=dict(n_ctx=50, task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}}, summary_type="cls_index"),
                     note="names and keys of the hub's gpt2"),
    "gpt2-head-in-file": case("GPT2", BF16, dict(n_head=3), add={"lm_head.weight": "transformer.wte.weight"}),
    "gpt_bigcode-mqa": case("GPTBigCode", BF16),
    "gpt_bigcode-mha": case("GPTBigCode", BF16, dict(multi_query=False)),
    "gpt_bigcode-mqa-relu-untied": case("GPTBigCode", BF16, dict(activation_function="relu", tie_word_embeddings=False, n_embd=18, n_inner=None)),
    "gpt_bigcode-no-scale": case("GPTBigCode", BF16, dict(multi_query=False, scale_attn_weights=False, activation_function="gelu")),
    "gpt_bigcode-bare": case("GPTBigCode", BF16, {}, bare=True, config=dict(num_key_value_heads=None, inference_runner=0, max_batch_size=None)),
    "gpt_neo-local": case("GPTNeo", BF16, note="the scores are not scaled; the second layer sees 7 keys"),
    "gpt_neo-hub": case("GPTNeo", BF16, dict(window_size=256, intermediate_size=None, hidden_size=18), bare=True,
                        add={**masks("transformer.h.{}.attn.attention.bias", 2, 50, "bool"),
                             **{f"transformer.h.{i}.attn.attention.masked_bias": ((), F32) for i in range(2)}},
                        config=dict(attention_layers=["global", "local"], intermediate_size=None)),
    "gpt_neo-global": case("GPTNeo", F16, dict(attention_types=[[["global"], 2]], activation_function="gelu", tie_word_embeddings=False)),
    "gpt_neox-parallel": case("GPTNeoX", BF16),
    "gpt_neox-sequential": case("GPTNeoX", BF16, dict(use_parallel_residual=False, tie_word_embeddings=True)),
    "gpt_neox-full-rotary": case("GPTNeoX", BF16, dict(hidden_size=24, num_attention_heads=6, hidden_act="gelu_new",
                                                      **rope("default", partial_rotary_factor=1.0))),
    "gpt_neox-no-bias": case("GPTNeoX", BF16, dict(attention_bias=False)),
    "gpt_neox-hub": case("GPTNeoX", F16, dict(max_position_embeddings=50), config=dict(rope_parameters=None, rotary_pct=0.5, rotary_emb_base=9000, dtype=None, torch_dtype=F16),
                         add={**masks("gpt_neox.layers.{}.attention.bias", 2, 50, "bool"),
                              **{f"gpt_neox.layers.{i}.attention.masked_bias": ((), F16) for i in range(2)},
                              **{f"gpt_neox.layers.{i}.attention.rotary_emb.inv_freq": ((2,), F16) for i in range(2)}},
                         note="names and keys of the hub's pythia"),
    "gpt_neox-bare": case("GPTNeoX", BF16, {}, bare=True, config=dict(rope_parameters=None)),
    "gptj-plain": case("GPTJ", BF16),
    "gptj-full-rotary-tied": case("GPTJ", BF16, dict(rotary_dim=8, tie_word_embeddings=True)),
    "gptj-hub": case("GPTJ", F16, dict(n_positions=50), config=dict(rotary=True, scale_attn_weights=True, n_ctx=50),
                     add={**masks("transformer.h.{}.attn.bias", 2, 50, "bool"), **{f"transformer.h.{i}.attn.masked_bias": ((), F32) for i in range(2)}}),
    "gptj-bare": case("GPTJ", BF16, dict(vocab_size=24, n_embd=64, n_head=1, n_layer=1, n_inner=8, rotary_dim=64), bare=True,
                      note="rotary_dim 64 is the default"),
    "opt-plain": case("OPT", BF16),
    "opt-350m": case("OPT", BF16, dict(do_layer_norm_before=False, word_embed_proj_dim=16)),
    "opt-proj-pre-norm": case("OPT", BF16, dict(word_embed_proj_dim=16)),
    "opt-no-bias-gelu": case("OPT", BF16, dict(enable_bias=False, activation_function="gelu")),
    "opt-no-affine": case("OPT", BF16, dict(layer_norm_elementwise_affine=False)),
    "opt-hub": case("OPT", F16, {}, strip="model.", bare=True, config=dict(prefix="</s>", activation_dropout=0.0, word_embed_proj_dim=24, dtype=None, torch_dtype=F16)),
    "bloom-plain": case("Bloom", BF16, {}, bare=True, note="6 heads: the slopes of 4 heads and every second one of 8"),
    "bloom-power-of-two": case("Bloom", BF16, dict(hidden_size=16, n_head=4)),
    "bloom-12-heads": case("Bloom", BF16, dict(n_head=12, hidden_size=24, n_layer=1), note="12 heads: slopes that no bf16 number is"),
    "bloom-hub": case("Bloom", F16, {}, strip="transformer.", config=dict(
        hidden_size=None, n_embed=18, n_head=None, num_attention_heads=6, n_inner=None, offset_alibi=100, seq_length=64, masked_softmax_fusion=True,
        bias_dropout_fusion=True, skip_bias_add=True, skip_bias_add_qkv=False, attention_softmax_in_fp32=True, unk_token_id=0, dtype=None, torch_dtype=F16),
        note="names and keys of the hub's bloom"),
    "mpt-plain": case("Mpt", BF16, {}, bare=True),
    "mpt-clip": case("Mpt", BF16, dict(attn_config=dict(clip_qkv=0.75, attn_type="multihead_attention")), note="most of q, k and v is clipped"),
    "mpt-scale": case("Mpt", BF16, dict(n_heads=12, d_model=24, n_layers=1, attn_config=dict(softmax_scale=0.3)), note="12 heads: slopes that no bf16 number is"),
    "mpt-hub": case("Mpt", BF16, dict(d_model=16, n_heads=4), config=dict(
        attn_config=dict(alibi=True, alibi_bias_max=8, attn_impl="torch", attn_pdrop=0, attn_type="multihead_attention", attn_uses_sequence_id=False,
                         clip_qkv=None, prefix_lm=False, qk_ln=False, softmax_scale=None), emb_pdrop=0, embedding_fraction=1.0, init_device="cpu",
        init_config={"name": "kaiming_normal_", "verbose": 0}, no_bias=True, norm_type="low_precision_layernorm", verbose=0, resid_pdrop=0)),
    "falcon-new-gqa": case("Falcon", BF16, dict(new_decoder_architecture=True, num_kv_heads=3)),
    "falcon-new-mha": case("Falcon", BF16, dict(new_decoder_architecture=True, num_kv_heads=6, tie_word_embeddings=False), config=dict(num_ln_in_parallel_attn=None),
                           note="two norms, the number not given: the default of the new architecture"),
    "falcon-new-one-norm": case("Falcon", BF16, dict(new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1, hidden_size=48, ffn_hidden_size=24, num_hidden_layers=1)),
    "falcon-mqa": case("Falcon", BF16, add={"lm_head.weight": "transformer.word_embeddings.weight"}, note="one norm, multi_query, rotary: falcon-7b"),
    "falcon-alibi": case("Falcon", BF16, dict(alibi=True, multi_query=False, parallel_attn=False, bias=True),
                         note="falcon-rw; sdpa, since transformers' eager form adds ALiBi twice; it rounds slope times distance to bf16, exact for these slopes"),
    "falcon-sequential": case("Falcon", BF16, dict(parallel_attn=False, bias=True)),
    "falcon-mha": case("Falcon", BF16, dict(multi_query=False, ffn_hidden_size=None)),
    "falcon-bare": case("Falcon", BF16, {}, bare=True, config=dict(num_kv_heads=None, rope_parameters=None)),
}

# Less common spellings; checked against transformers, not committed.
MORE = {
    "llama-theta-gelu": case("Llama", F32, dict(hidden_act="gelu_pytorch_tanh", rope_parameters={"rope_type": "default", "rope_theta": 500000.0})),
    "llama-gelu-erf": case("Llama", F32, dict(hidden_act="gelu", rms_norm_eps=1e-3)),
    "llama-dynamic-short": case("Llama", F32, rope("dynamic", factor=3.0)),
    "llama-longrope-short": case("Llama", F32, rope("longrope", factor=2.0, original_max_position_embeddings=60, **longrope(8))),
    "llama-longrope-ratio": case("Llama", F32, rope("longrope", original_max_position_embeddings=16, **longrope(8))),
    "llama-yarn-mscale": case("Llama", F32, rope("yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.5, mscale=0.7, mscale_all_dim=1.3)),
    "llama-yarn-factor": case("Llama", F32, rope("yarn", factor=8.0, original_max_position_embeddings=16, attention_factor=0.9)),
    "llama-one-head": case("Llama", F32, dict(num_attention_heads=1, num_key_value_heads=1)),
    "mistral-full": case("Mistral", BF16, dict(sliding_window=None, tie_word_embeddings=False)),
    "mistral-narrow": case("Mistral", F32, dict(sliding_window=1)),
    "mistral-layer-types": case("Mistral", F16, dict(sliding_window=7), config=dict(layer_types=["full_attention", "sliding_attention"])),
    "llama-scaling-and-parameters": case("Llama", BF16, rope("linear", factor=4.0), config=dict(rope_scaling={"type": "linear", "factor": 2.0})),
    "llama-empty-scaling": case("Llama", F32, {}, config=dict(rope_scaling={}, rope_theta=5.0)),
    "llama-dynamic-original-inside": case("Llama", BF16, dict(max_position_embeddings=16, **rope("dynamic", factor=2.0)),
                                          config=dict(rope_scaling={"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 30})),
    "llama-linear-attention-factor": case("Llama", BF16, rope("linear", factor=4.0),
                                          config=dict(rope_scaling={"type": "linear", "factor": 2.0, "attention_factor": 0.5})),
    "llama-llama3-original-outside": case("Llama", BF16, rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
                                          config=dict(original_max_position_embeddings=8)),
    "llama-llama3-no-original": case("Llama", BF16, {}, config=dict(rope_parameters=LLAMA3, max_position_embeddings=20)),
    "llama-yarn-nulls": case("Llama", BF16, {}, config=dict(rope_parameters={"rope_type": "yarn", "factor": 4.0, "attention_factor": None, "beta_fast": None})),
    "llama-longrope-original-twice": case("Llama", BF16, rope("longrope", factor=4.0, original_max_position_embeddings=16, **longrope(8)),
                                          config=dict(original_max_position_embeddings=20)),
    "llama-list-of-ends": case("Llama", F32, {}, config=dict(eos_token_id=[2, 3])),
}


def settings_of(name):
    return {**CASES, **MORE}[name]


EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "wpe.weight", "embed_positions.weight", "embed_in.weight", "word_embeddings.weight")


def build(name):
    """The model of a case, weights rounded to its stored type."""
    kind, dtype, settings, edits = settings_of(name)
    config = getattr(transformers, kind + "Config")(**{**COMMON, **BASE[kind], **settings})
    model = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(kind, kind + "ForCausalLM"))(config)
    generator = torch.Generator().manual_seed(sum(map(ord, name)) + edits.get("seed", 0))
    norms = {f"{m}.{p}": p for m, module in model.named_modules() if "norm" in type(module).__name__.lower() for p, _ in module.named_parameters(recurse=False)}
    with torch.no_grad():
        for p_name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if norms.get(p_name) == "weight":
                p.copy_((kind != "Gemma") + 0.2 * noise)
            elif p.dim() == 1:
                p.copy_(0.5 * noise)
            else:
                fan_in = p.shape[0] if kind == "GPT2" and ".c_" in p_name else p.shape[1]
                p.copy_(noise * 1.5 / fan_in ** 0.5)
            if edits.get("bare") and any(p_name.endswith(e) for e in EMBEDDINGS):
                p *= 0.1  # so small that the norm's epsilon, a default too, counts
    return model.to(getattr(torch, dtype)).eval()


def edit_config(path, kind, edits):
    with open(path) as f:
        config = json.load(f)
    if edits.get("bare"):
        defaults = json.loads(getattr(transformers, kind + "Config")().to_json_string(use_diff=False))
        config = {k: v for k, v in config.items() if k not in defaults or v != defaults[k] or k in ("model_type", "architectures", "dtype", *COMMON)}
    changes = edits.get("config", {})
    config = {k: v for k, v in {**config, **changes}.items() if k not in changes or v is not None}
    with open(path, "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")


def edit_tensors(path, edits):
    tensors, strip = safetensors.torch.load_file(path), edits.get("strip", "")
    tensors = {name.removeprefix(strip): t.clone() for name, t in tensors.items()}
    for name, what in edits.get("add", {}).items():
        if isinstance(what, str):
            tensors[name] = tensors[what].clone()
        else:
            shape, dtype = what
            t = torch.ones(shape).tril() if len(shape) == 4 else torch.full(shape, -10000.0 if not shape else 1.0)
            tensors[name] = t.to(getattr(torch, dtype))
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def save(name, path, **options):
    """Saves a case's directory: config.json and model.safetensors (max_shard_size: several)."""
    kind, _, _, edits = settings_of(name)
    build(name).save_pretrained(path, **options)
    if edits:
        edit_config(os.path.join(path, "config.json"), kind, edits)
    if edits.get("strip") or edits.get("add"):
        edit_tensors(os.path.join(path, "model.safetensors"), edits)


def attention_of(path):
    """Eager, but for Falcon with ALiBi: there transformers 5.23 adds the bias twice in its eager form (FalconModel puts it into the
    mask for sdpa, FalconAttention adds it once more); sdpa, the default, is right."""
    with open(os.path.join(path, "config.json")) as f:
        return "sdpa" if json.load(f).get("alibi") else "eager"


def load(path, **options):
    """A directory as transformers reads it, then the arithmetic in float64 over the stored weights."""
    return transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation=attention_of(path), **options).eval().double()


def ids_of(vocab, n=TOKENS):
    return [(7 * i * i + 13 * i + 1) % 8191 % vocab for i in range(n)]


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].double()


def logprob_of(logits, ids):
    """ln p(ids[i+1] | ids[0..i]) from the logits of ids[0..n-2]."""
    return torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), ids[1:]].tolist()


def logprob(model, ids):
    """The last id is not fed, so that what depends on the length sees what gqa-eval sees."""
    return logprob_of(logits_of(model, ids[:-1]), ids)


def greedy(model, ids, n=GREEDY):
    """The n likeliest ids after another, each from the whole sequence again, and the smallest lead of a winner over the second."""
    out, lead = list(ids), float("inf")
    for _ in range(n):
        top = torch.topk(logits_of(model, out)[-1], 2)
        lead = min(lead, (top.values[0] - top.values[1]).item())
        out.append(top.indices[0].item())
    return out[len(ids):], lead


def ends(model):
    """The ids that end a text."""
    eos = model.generation_config.eos_token_id
    return eos if isinstance(eos, list) else [eos]
