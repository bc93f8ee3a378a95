"""Tiny models of Hugging Face transformers, one for each thing a config.json of the llama family can say: the cases of
tools/check-transformers and tools/make-hf-goldens. Weights are wide random numbers, so that a wrong rotary angle, mask or
bias shows in the first digits."""
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import torch
import transformers

torch.set_num_threads(1)
TOKENS = 41  # beyond the trained positions of every scaled case, and beyond the window
SMALL = dict(vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
             head_dim=16, max_position_embeddings=64, tie_word_embeddings=True)


def rope(kind, **settings):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


def longrope(n):
    return {"long_factor": [1 + i / 2 for i in range(n)], "short_factor": [1 + i / 8 for i in range(n)]}


# name: (class, stored type, what differs from SMALL)
CASES = {
    "plain": ("Llama", "float32", dict(num_attention_heads=4, num_key_value_heads=4, head_dim=4)),
    "biases-untied": ("Llama", "float32", dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=False)),
    "wide-heads-gqa": ("Llama", "float32", dict(hidden_size=24, num_attention_heads=6, num_key_value_heads=3, head_dim=8)),
    "rope-linear": ("Llama", "bfloat16", rope("linear", factor=4.0)),
    "rope-dynamic": ("Llama", "bfloat16", dict(max_position_embeddings=16, **rope("dynamic", factor=2.0))),
    "rope-llama3": ("Llama", "bfloat16", rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)),
    "rope-yarn": ("Llama", "bfloat16", rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "rope-longrope": ("Llama", "bfloat16", rope("longrope", factor=4.0, original_max_position_embeddings=16, **longrope(8))),
    "mistral-window": ("Mistral", "float16", dict(sliding_window=7)),
}
# Less common spellings; checked against transformers, not committed.
MORE = {
    "theta-gelu": ("Llama", "float32", dict(hidden_act="gelu_pytorch_tanh", rope_parameters={"rope_type": "default", "rope_theta": 500000.0})),
    "gelu-erf": ("Llama", "float32", dict(hidden_act="gelu", rms_norm_eps=1e-3)),
    "dynamic-short": ("Llama", "float32", rope("dynamic", factor=3.0)),
    "longrope-short": ("Llama", "float32", rope("longrope", factor=2.0, original_max_position_embeddings=60, **longrope(8))),
    "longrope-ratio": ("Llama", "float32", rope("longrope", original_max_position_embeddings=16, **longrope(8))),
    "yarn-mscale": ("Llama", "float32", rope("yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.5, mscale=0.7, mscale_all_dim=1.3)),
    "yarn-factor": ("Llama", "float32", rope("yarn", factor=8.0, original_max_position_embeddings=16, attention_factor=0.9)),
    "mistral-full": ("Mistral", "bfloat16", dict(sliding_window=None, tie_word_embeddings=False)),
    "mistral-narrow": ("Mistral", "float32", dict(sliding_window=1)),
    "one-head": ("Llama", "float32", dict(num_attention_heads=1, num_key_value_heads=1)),
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# name: (case, top-level keys of the saved config.json to set or, with None, to remove): other spellings, and things said twice.
EDITS = {
    "old spelling": ("rope-llama3", dict(rope_parameters=None, rope_theta=9000.0, dtype=None, torch_dtype="bfloat16",
                                         rope_scaling={**LLAMA3, "original_max_position_embeddings": 16})),
    "scaling and parameters": ("rope-linear", dict(rope_scaling={"type": "linear", "factor": 2.0})),
    "empty scaling": ("plain", dict(rope_scaling={}, rope_theta=5.0)),
    "dynamic, original inside": ("rope-dynamic", dict(rope_scaling={"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 30})),
    "linear, attention_factor": ("rope-linear", dict(rope_scaling={"type": "linear", "factor": 2.0, "attention_factor": 0.5})),
    "llama3, original outside": ("rope-llama3", dict(original_max_position_embeddings=8)),
    "llama3, no original": ("rope-llama3", dict(rope_parameters=LLAMA3, max_position_embeddings=20)),
    "yarn, nulls": ("rope-yarn", dict(rope_parameters={"rope_type": "yarn", "factor": 4.0, "attention_factor": None, "beta_fast": None})),
    "longrope, original twice": ("rope-longrope", dict(original_max_position_embeddings=20)),
    "layer types": ("mistral-window", dict(layer_types=["full_attention", "sliding_attention"])),
    "no heads": ("plain", dict(num_key_value_heads=None, head_dim=None)),
    "list of ends": ("plain", dict(eos_token_id=[2, 3])),
}


def save(name, path, **options):
    case, edits = EDITS.get(name, (name, {}))
    build(case).save_pretrained(path, **options)
    file = os.path.join(path, "config.json")
    with open(file) as f:
        config = json.load(f)
    config = {k: v for k, v in {**config, **edits}.items() if k not in edits or v is not None}
    if edits:
        with open(file, "w") as f:
            json.dump(config, f)


def build(name):
    """The model of a case, weights rounded to its stored type, the arithmetic in float64."""
    kind, dtype, settings = {**CASES, **MORE}[name]
    config = getattr(transformers, kind + "Config")(**{**SMALL, **settings}, bos_token_id=1, eos_token_id=2)
    model = getattr(transformers, kind + "ForCausalLM")(config)
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for p_name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p_name.endswith("norm.weight"):
                p.copy_(1 + 0.2 * noise)
            elif p.dim() == 1:
                p.copy_(0.5 * noise)
            else:
                p.copy_(noise * 1.5 / p.shape[1] ** 0.5)
    return model.to(getattr(torch, dtype)).eval()


def ids_of(vocab, n=TOKENS):
    return [(7 * i * i + 13 * i + 1) % 8191 % vocab for i in range(n)]


def logprob(model, ids):
    """ln p(ids[i+1] | ids[0..i]); the last id is not fed, so that what depends on the length sees what gqa-eval sees."""
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]])).logits[0].double()
    return torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), ids[1:]].tolist()



def ends(model):
    """The ids that end a text."""
    eos = model.generation_config.eos_token_id
    return eos if isinstance(eos, list) else [eos]
