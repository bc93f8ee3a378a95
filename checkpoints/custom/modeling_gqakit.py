"""A decoder with grouped-query attention, driven by config.arch: norms before or after a sublayer, sequential or parallel
residuals, rotary, learned or ALiBi positions, norms of queries and keys, windows, a number of K/V heads per layer. It computes
what gqa-eval computes. Query head h reads K/V head h / (H / G).

    B batch  T query length  S key length  C model width  H query heads  G K/V heads of a layer  D head width  F MLP width

Parameters are named as in the file: dec.N.attn.{q,k,v,o}.{w,b}, dec.N.{attn_norm,mlp_norm}.{w,b}, dec.N.mlp.{gate,up,down}.{w,b},
embed.weight, pos.weight, dec.final_norm.{w,b}, head.{w,b}; every matrix is [out, in]. A head that is tied has no parameter.
Load with AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True); run with transformers 4.49
and 5.23."""
import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_gqakit import GqakitConfig

SDPA_GROUPS = "enable_gqa" in (F.scaled_dot_product_attention.__doc__ or "")  # torch >= 2.5
ACTIVATIONS = {"swiglu": F.silu, "geglu_tanh": lambda x: F.gelu(x, approximate="tanh"), "geglu_erf": F.gelu, "gelu_erf": F.gelu,
               "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}
GATED = ("swiglu", "geglu_tanh", "geglu_erf")


def wide(x):
    """Norms and angles are computed in f32, or in f64 for an f64 model."""
    return x if x.dtype == torch.float64 else x.float()


class Linear(nn.Module):
    def __init__(self, out_features, in_features, bias):
        super().__init__()
        self.w = nn.Parameter(torch.empty(out_features, in_features))
        self.b = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x):
        return F.linear(x, self.w, self.b)


class Table(nn.Module):
    def __init__(self, rows, width):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, ids):
        return F.embedding(ids, self.weight)


class Norm(nn.Module):
    """Over the last axis: "rms", "rms1p" (1 + w), "layer", "layer_nop" (no parameters)."""

    def __init__(self, arch, width, bias=True, shape=None):
        super().__init__()
        self.kind, self.eps = arch["norm"], arch["norm_eps"]
        has = self.kind != "layer_nop"
        self.w = nn.Parameter(torch.empty(width)) if has else None
        self.b = nn.Parameter(torch.empty(width)) if has and bias and "norm" in arch["bias"] else None
        self.shape = shape  # of w beside x, when they differ

    def forward(self, x):
        y = wide(x)
        if self.kind.startswith("layer"):
            y = y - y.mean(-1, keepdim=True)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.w is not None:
            w = wide(self.w) if self.shape is None else wide(self.w).view(self.shape)
            y = y * (1 + w if self.kind == "rms1p" else w)
        if self.b is not None:
            y = y + wide(self.b)
        return y.to(x.dtype)


class QkNorm(Norm):
    """On queries or keys [B, T, heads, D]: over D with one weight, over D with a weight per head, or over heads * D."""

    def __init__(self, arch, heads, D):
        self_kind = arch["qk_norm"]
        super().__init__(arch, D if self_kind == "head" else heads * D, bias=False, shape=(heads, D) if self_kind == "per_head" else None)
        self.full = self_kind == "full"

    def forward(self, x):
        return super().forward(x.flatten(-2)).view(x.shape) if self.full else super().forward(x)


# ---- positions ---------------------------------------------------------------------------------------------------------


def rope_frequencies(arch, length, device):
    """The angle of pair i per position, and the factor on cos and sin, for sequences of `length` (dynamic and longrope ask)."""
    rope = arch["rope"]
    r, kind, factor, theta = rope["dims"], rope["kind"], rope["factor"], rope["theta"]
    trained = rope["original_max_positions"] or arch["max_positions"]
    if kind == "dynamic":
        theta *= (factor * max(length, trained) / trained - (factor - 1)) ** (r / (r - 2))
    i = torch.arange(r // 2, device=device, dtype=torch.float64)
    f = theta ** (-2 * i / r)
    attention = rope["attention_factor"] or 1.0
    if kind == "linear":
        f = f / factor
    elif kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = ((trained * f / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        f = (1 - smooth) * f / factor + smooth * f
    elif kind == "yarn":
        def index(turns):
            return r * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))
        low = max(math.floor(index(rope["beta_fast"] or 32.0)), 0)
        high = min(math.ceil(index(rope["beta_slow"] or 1.0)), r - 1)
        ramp = ((i - low) / max(high - low, 0.001)).clamp(0, 1)
        f = f / factor * ramp + f * (1 - ramp)
        attention = rope["attention_factor"] or (0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
    elif kind == "longrope":
        divisors = rope.get("long_factor" if length > trained else "short_factor")
        if divisors:
            f = f / torch.tensor(divisors, device=device, dtype=torch.float64)
        ratio = arch["max_positions"] / trained if rope["original_max_positions"] else factor
        attention = rope["attention_factor"] or (math.sqrt(1 + math.log(ratio) / math.log(trained)) if ratio > 1 else 1.0)
    return f, attention


def rotate(x, cos, sin):
    """The first r dims of every head of x [B, T, heads, D], in pairs (i, i + r/2); cos, sin [B, T, 1, r/2]."""
    r = 2 * cos.shape[-1]
    a, b, rest = x[..., : r // 2], x[..., r // 2 : r], x[..., r:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def alibi_slopes(heads, bias_max):
    """2^(-bias_max i / n) for n heads, a power of two; the other heads take every second slope of 2n (Press et al. 2022)."""
    n = 2 ** math.floor(math.log2(heads))
    return [2 ** (-bias_max * (i + 1) / n) for i in range(n)] + [2 ** (-bias_max * (2 * i + 1) / (2 * n)) for i in range(heads - n)]


class Masks:
    """What is added to the scores, by window and key length: -inf where a query may not look, ALiBi where it may."""

    def __init__(self, arch, padding, past, T, dtype, device):
        self.arch, self.padding, self.past, self.T, self.dtype, self.device, self.made = arch, padding, past, T, dtype, device, {}

    def get(self, S, block):
        scale = block["scale"] if block.get("scale") else self.arch["attn_scale"]
        key = (S, block["window"], block["H"], scale)
        if key not in self.made:
            self.made[key] = self.make(S, block["window"], block["H"], scale)
        return self.made[key]

    def make(self, S, window, H, scale):
        q = torch.arange(self.past, self.past + self.T, device=self.device)[:, None]
        distance = torch.arange(S, device=self.device)[None, :] - q
        seen = (distance <= 0) & (distance > -window if window else True)
        seen = seen[None, None]
        if self.padding is not None:
            real = F.pad(self.padding.bool(), (0, S - self.padding.shape[1]), value=False)[:, None, None, :]
            seen = seen & (real | (distance == 0))  # a padded query sees itself, so that no row is empty
        if self.arch["pos"] != "alibi":
            bias = torch.zeros(1, 1, 1, 1, dtype=self.dtype, device=self.device)
        else:
            slopes = torch.tensor(alibi_slopes(H, self.arch["alibi_bias_max"]), dtype=torch.float64, device=self.device)
            bias = slopes[:, None, None] * distance * (scale if self.arch["alibi_scaled"] else 1.0)
            bias = bias.to(self.dtype)[None]
        return torch.where(seen, bias, torch.finfo(self.dtype).min)


# ---- a block -----------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, arch, block, layer):
        super().__init__()
        H, G, D, C, bias = block["H"], block["G"], block["D"], arch["C"], arch["bias"]
        self.block, self.layer, self.clip = block, layer, arch["clip_qkv"]
        self.scale = block["scale"] if block.get("scale") else arch["attn_scale"]
        self.q = Linear(H * D, C, "q" in bias)
        self.k = Linear(G * D, C, "k" in bias)
        self.v = Linear(G * block["Dv"], C, "v" in bias)
        if arch["qk_norm"] != "none":
            self.q_norm, self.k_norm = QkNorm(arch, H, D), QkNorm(arch, G, D)
        else:
            self.q_norm = self.k_norm = nn.Identity()
        self.o = Linear(C, H * block["Dv"], "o" in bias)

    def forward(self, x, angles, masks, cache, eager):
        B, T, _ = x.shape
        H, G = self.block["H"], self.block["G"]
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.clip:
            q, k, v = (t.clamp(-self.clip, self.clip) for t in (q, k, v))
        q, k, v = self.q_norm(q.view(B, T, H, -1)), self.k_norm(k.view(B, T, G, -1)), v.view(B, T, G, -1)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        mask = masks.get(k.shape[2], self.block)
        if eager or not SDPA_GROUPS:
            k, v = k.repeat_interleave(H // G, 1), v.repeat_interleave(H // G, 1)
        if eager:
            scores = wide(q @ k.transpose(-1, -2) * self.scale + mask)
            o = scores.softmax(-1).to(v.dtype) @ v
        else:
            groups = {"enable_gqa": True} if SDPA_GROUPS and G != H else {}
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale, **groups)
        return self.o(o.transpose(1, 2).reshape(B, T, -1))


class Mlp(nn.Module):
    def __init__(self, arch, width):
        super().__init__()
        C, bias = arch["C"], "mlp_in" in arch["bias"]
        self.act = ACTIVATIONS[arch["mlp"]]
        self.gate = Linear(width, C, bias) if arch["mlp"] in GATED else None
        self.up = Linear(width, C, bias)
        self.down = Linear(C, width, "mlp_out" in arch["bias"])

    def forward(self, x):
        return self.down(self.act(self.up(x)) if self.gate is None else self.act(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, arch, block, layer):
        super().__init__()
        self.place, self.residual, self.scale = arch["norm_place"], arch["residual"], arch["residual_scale"]
        self.attn_norm = Norm(arch, arch["C"])
        self.attn = Attention(arch, block, layer)
        self.mlp_norm = Norm(arch, arch["C"]) if self.residual != "parallel_one_norm" else None
        self.mlp = Mlp(arch, block["F"])

    def forward(self, x, *attention):
        if self.residual != "sequential":
            n = self.attn_norm(x)
            m = n if self.mlp_norm is None else self.mlp_norm(x)
            return x + self.scale * (self.attn(n, *attention) + self.mlp(m))
        for norm, f in ((self.attn_norm, lambda h: self.attn(h, *attention)), (self.mlp_norm, self.mlp)):
            if self.place == "pre":
                x = x + self.scale * f(norm(x))
            elif self.place == "post_sublayer":
                x = x + self.scale * norm(f(x))
            else:
                x = norm(x + self.scale * f(x))
        return x


class Decoder(nn.Module):
    """Children "0", "1", ... and "final_norm", as the names in the file have it."""

    def __init__(self, arch):
        super().__init__()
        self.blocks = arch["decoder"]["blocks"]
        for layer, block in enumerate(self.blocks):
            self.add_module(str(layer), Block(arch, block, layer))
        self.final_norm = Norm(arch, arch["C"]) if arch["norm_place"] != "post_residual" else None

    def forward(self, x, *attention):
        for layer in range(len(self.blocks)):
            x = getattr(self, str(layer))(x, *attention)
        return x if self.final_norm is None else self.final_norm(x)


# ---- the model ---------------------------------------------------------------------------------------------------------


class GqakitForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = GqakitConfig
    base_model_prefix = ""
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    _supports_cache_class = True

    def __init__(self, config):
        super().__init__(config)
        arch = config.arch
        width = arch["embed_proj"] or arch["C"]
        self.embed = Table(arch["V"], width)
        self.embed_proj_in = Linear(arch["C"], width, False) if arch["embed_proj"] else None
        self.pos = Table(arch["max_positions"] + arch["pos_offset"], arch["C"]) if arch["pos"] == "learned" else None
        self.embed_norm = Norm(arch, arch["C"]) if arch["embed_norm"] else None
        self.dec = Decoder(arch)
        self.embed_proj_out = Linear(width, arch["C"], False) if arch["embed_proj"] else None
        self.head = nn.Module()
        if not arch["tied"]:
            self.head.w = nn.Parameter(torch.empty(arch["V"], width))
        self.head.b = nn.Parameter(torch.empty(arch["V"])) if "head" in arch["bias"] else None
        self.post_init()

    def _init_weights(self, module):
        """A new model: normal matrices, norms that do nothing."""
        for name, p in module.named_parameters(recurse=False):
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
            else:
                nn.init.constant_(p, float(isinstance(module, Norm) and name == "w" and module.kind != "rms1p"))

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return None  # tied or not, the head is no module of its own kind

    def embedded(self, ids, embeds, positions):
        arch = self.config.arch
        x = (self.embed(ids) if embeds is None else embeds) * arch["embed_scale"]
        if self.embed_proj_in is not None:
            x = self.embed_proj_in(x)
        if self.pos is not None:
            x = x + self.pos(positions + arch["pos_offset"])
        return x if self.embed_norm is None else self.embed_norm(x)

    def logits(self, x):
        arch = self.config.arch
        if self.embed_proj_out is not None:
            x = self.embed_proj_out(x)
        y = F.linear(x, self.embed.weight if arch["tied"] else self.head.w) * arch["logit_scale"]
        if self.head.b is not None:
            y = y + self.head.b
        return arch["logit_softcap"] * torch.tanh(y / arch["logit_softcap"]) if arch["logit_softcap"] else y

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, labels=None,
                use_cache=None, return_dict=None, logits_to_keep=0, **kwargs):
        """attention_mask [B, S]: 1 for real tokens, those in the past included. labels: as input_ids, -100 where there is no loss."""
        arch = self.config.arch
        given = input_ids if inputs_embeds is None else inputs_embeds
        (B, T), device = given.shape[:2], given.device
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None and not self.training:
            past_key_values = DynamicCache()
        past = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError("attention_mask must be [batch, length] with 1 for tokens and 0 for padding")
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -T:]
        elif position_ids is None:
            position_ids = torch.arange(past, past + T, device=device)[None]
        x = self.embedded(input_ids, inputs_embeds, position_ids)
        angles = None
        if arch["pos"] == "rope":
            f, factor = rope_frequencies(arch, past + T, device)
            turn = position_ids[:, :, None, None] * f
            angles = [(t * factor).to(x.dtype) for t in (turn.cos(), turn.sin())]
        padding = None if attention_mask is None or bool(attention_mask.all()) else attention_mask
        masks = Masks(arch, padding, past, T, x.dtype, device)
        x = self.dec(x, angles, masks, past_key_values if use_cache else None, self.config._attn_implementation == "eager")
        if labels is None and isinstance(logits_to_keep, int) and logits_to_keep:
            x = x[:, -logits_to_keep:]
        logits, loss = self.logits(x), None
        if labels is not None:
            loss = F.cross_entropy(wide(logits[:, :-1]).flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        out = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values if use_cache else None)
        return out if return_dict is None or return_dict else out.to_tuple()

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, inputs_embeds=None, **kwargs):
        if "next_sequence_length" in kwargs:  # transformers 5 does it itself
            return super().prepare_inputs_for_generation(input_ids, past_key_values=past_key_values, attention_mask=attention_mask,
                                                         inputs_embeds=inputs_embeds, **kwargs)
        past = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        if inputs_embeds is not None and past == 0:
            inputs = {"inputs_embeds": inputs_embeds}
        else:
            total = attention_mask.shape[1] if attention_mask is not None else input_ids.shape[1]
            inputs = {"input_ids": input_ids[:, past - total :].contiguous()}
        return {**inputs, "past_key_values": past_key_values, "attention_mask": attention_mask, "use_cache": kwargs.get("use_cache", True)}


__all__ = ["GqakitForCausalLM"]


GqakitForCausalLM.register_for_auto_class("AutoModelForCausalLM")  # save_pretrained copies this file along
