"""Configuration of a gqakit model: config.json holds the whole architecture under "arch"; the keys beside it are what other
programs look for. Written by gqa-convert next to modeling_gqakit.py; load with trust_remote_code=True."""
from transformers import PretrainedConfig


class GqakitConfig(PretrainedConfig):
    model_type = "gqakit"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(self, arch=None, use_cache=True, **kwargs):
        arch = arch or {}
        blocks = arch.get("decoder", {}).get("blocks", [])
        self.arch = arch
        self.use_cache = use_cache
        if blocks:  # for those who ask the config and not the architecture; layers may differ in their K/V heads
            self.vocab_size = arch["V"]
            self.hidden_size = arch["C"]
            self.max_position_embeddings = arch["max_positions"]
            self.num_hidden_layers = len(blocks)
            self.num_attention_heads = blocks[0]["H"]
            self.num_key_value_heads = max(b["G"] for b in blocks)
            self.head_dim = blocks[0]["D"]
            self.intermediate_size = blocks[0]["F"]
            kwargs = {k: v for k, v in kwargs.items() if k not in vars(self)}
            kwargs["tie_word_embeddings"] = bool(arch["tied"])
        super().__init__(**kwargs)


__all__ = ["GqakitConfig"]


GqakitConfig.register_for_auto_class()  # save_pretrained copies this file along
