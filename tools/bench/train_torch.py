#!/usr/bin/env python3
"""The peer of bench_train: the same LLaMA shape and step in PyTorch, eager, f32, plain attention, AdamW.

Prints one JSON line: {"who", "step_s", "tok_s", "rss_mb", "loss"}. FLOPs per token follow the same convention as bench_train, so
only seconds are compared. scaled_dot_product_attention is used when this PyTorch has it (2.0 and later), else the plain softmax.
"""
import argparse
import json
import math
import os
import resource
import time

CPUS = len(os.sched_getaffinity(0))  # before torch starts its pool: a bound pool leaves this thread one CPU

import torch
import torch.nn.functional as F
from torch import nn

p = argparse.ArgumentParser()
for name, value in dict(C=768, L=12, H=12, G=0, D=64, F=2048, V=32000, B=1, T=1024, steps=3, threads=0).items():
    p.add_argument("--" + name, type=int, default=value)
o = p.parse_args()
o.G = o.G or o.H
torch.set_num_threads(o.threads or CPUS)
torch.manual_seed(1)


class RMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(o.C))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.w


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(), RMSNorm()
        self.qkv = nn.Linear(o.C, (o.H + 2 * o.G) * o.D, bias=False)
        self.o = nn.Linear(o.H * o.D, o.C, bias=False)
        self.gate_up = nn.Linear(o.C, 2 * o.F, bias=False)
        self.down = nn.Linear(o.F, o.C, bias=False)

    def forward(self, x, cos, sin, mask):
        q, k, v = self.qkv(self.norm1(x)).view(o.B, o.T, o.H + 2 * o.G, o.D).transpose(1, 2).split((o.H, o.G, o.G), 1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if o.G != o.H:
            k, v = k.repeat_interleave(o.H // o.G, 1), v.repeat_interleave(o.H // o.G, 1)
        if hasattr(F, "scaled_dot_product_attention"):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = F.softmax(q @ k.transpose(-2, -1) / math.sqrt(o.D) + mask, -1) @ v
        x = x + self.o(y.transpose(1, 2).reshape(o.B, o.T, o.H * o.D))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(o.V, o.C)
        self.blocks = nn.ModuleList(Block() for _ in range(o.L))
        self.norm = RMSNorm()
        nn.init.normal_(self.embed.weight, std=0.02)
        angle = torch.arange(o.T)[:, None] * 10000.0 ** (-torch.arange(0, o.D, 2) / o.D)[None]
        self.cos, self.sin = angle.cos(), angle.sin()
        self.mask = torch.full((o.T, o.T), float("-inf")).triu(1)

    def forward(self, ids, targets):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin, self.mask)
        return F.cross_entropy((self.norm(x) @ self.embed.weight.T).view(-1, o.V), targets.view(-1))


model = Model()
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
ids, targets = torch.randint(o.V, (2, o.B, o.T))
best = math.inf
for step in range(o.steps + 1):
    start = time.perf_counter()
    optimiser.zero_grad(set_to_none=True)
    loss = model(ids, targets)
    loss.backward()
    optimiser.step()
    if step:
        best = min(best, time.perf_counter() - start)
print(json.dumps({"who": "PyTorch " + torch.__version__, "threads": torch.get_num_threads(), "step_s": round(best, 4),
                  "tok_s": round(o.B * o.T / best, 1), "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                  "loss": round(loss.item(), 4)}))
