"""The configuration of a gqakit model: the usual keys, and under "arch" everything the model is (see modeling_gqakit.py)."""

from transformers import PretrainedConfig


class GqakitConfig(PretrainedConfig):
    model_type = "gqakit"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(self, arch=None, **kwargs):
        self.arch = arch or {}
        super().__init__(**kwargs)
