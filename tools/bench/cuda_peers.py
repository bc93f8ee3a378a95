#!/usr/bin/env python3
"""The peers of bench_cuda_attention and bench_cuda_train on the same GPU: PyTorch's scaled_dot_product_attention with its flash and
cuDNN backends, and torch.compile training of the same LLaMA shape.

  tools/bench/cuda_peers.py attention [--D 64,128 --T 2048,4096,8192,16384 --H 32 --G 8,32 --tokens 16384]
  tools/bench/cuda_peers.py train     [--C 2048 --L 24 --H 16 --G 16 --D 128 --F 5504 --V 32000 --B 8 --T 2048 --steps 10]

Prints JSON lines like the programs'. Times are taken as theirs: the median of seven rounds of calls between two waits for the GPU.
Without PyTorch or a GPU it says so and succeeds. Training: f32 parameters, gradients and AdamW (fused) moments, bf16 autocast, which
is what gqakit keeps; and bf16 parameters with bf16 moments, which is less arithmetic and less memory, for comparison. Compiled block by
block (seconds), then as a whole (minutes).
"""
import argparse
import gc
import json
import math
import sys
import time

try:
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError:
    print("skipped: cuda_peers: this python3 has no PyTorch", file=sys.stderr)
    sys.exit(0)


def ints(text):
    return [int(x) for x in text.split(",")]


p = argparse.ArgumentParser()
p.add_argument("what", choices=["attention", "train"])
p.add_argument("--D", type=ints)
p.add_argument("--T", type=ints)
p.add_argument("--G", type=ints)
p.add_argument("--H", type=int)
p.add_argument("--tokens", type=int, default=16384)
p.add_argument("--seconds", type=float, default=0.2)
for name, value in dict(C=2048, L=24, F=5504, V=32000, B=8, steps=10).items():
    p.add_argument("--" + name, type=int, default=value)
p.add_argument("--device", default="cuda", help="cpu: only to try this script")
o = p.parse_args()
if o.device == "cuda" and not torch.cuda.is_available():
    print("skipped: cuda_peers: PyTorch sees no GPU", file=sys.stderr)
    sys.exit(0)
WHO = "PyTorch " + torch.__version__


def wait():
    if o.device == "cuda":
        torch.cuda.synchronize()


def median_seconds(call):
    call()
    wait()
    start = time.perf_counter()
    call()
    wait()
    calls = max(1, min(10000, int(o.seconds / 7 / max(time.perf_counter() - start, 1e-7))))
    times = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        times.append((time.perf_counter() - start) / calls)
    return sorted(times)[3]


def attention_shape(backend, name, B, T, H, G, D):
    from torch.nn.attention import sdpa_kernel

    def heads(n):
        return torch.randn(B, T, n, D, device=o.device, dtype=torch.bfloat16).transpose(1, 2).requires_grad_()

    q, k, v = heads(H), heads(G), heads(G)
    flops = 2.0 * B * H * D * T * T
    row = dict(bench="attention", who=WHO + " " + name, B=B, T=T, H=H, G=G, D=D)
    with sdpa_kernel(backend):
        native = True

        def forward():
            if native:
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=G != H)
            return F.scaled_dot_product_attention(q, k.repeat_interleave(H // G, 1), v.repeat_interleave(H // G, 1), is_causal=True)

        try:
            out = forward()
        except RuntimeError:
            native = False
            out = forward()
        dout = torch.randn_like(out)
        try:
            torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
        except RuntimeError:
            native = False
            out = forward()
        row["gqa"] = "native" if native else "expanded"
        with torch.no_grad():
            s = median_seconds(forward)
        print(json.dumps(dict(row, **{"pass": "forward", "ms": round(1e3 * s, 4), "tflops": round(flops / s * 1e-12, 2)})), flush=True)
        s = median_seconds(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))
        print(json.dumps(dict(row, **{"pass": "backward", "ms": round(1e3 * s, 4), "tflops": round(2.5 * flops / s * 1e-12, 2)})), flush=True)


def attention():
    from torch.nn.attention import SDPBackend

    backends = [(SDPBackend.FLASH_ATTENTION, "flash"), (SDPBackend.CUDNN_ATTENTION, "cuDNN")]
    if o.device == "cpu":
        backends = backends[:1]
    for D in o.D or [64, 128]:
        for G in o.G or [8, 32]:
            for T in o.T or [2048, 4096, 8192, 16384]:
                for backend, name in backends:
                    try:
                        attention_shape(backend, name, max(1, o.tokens // T), T, o.H or 32, G, D)
                    except RuntimeError as e:
                        print(json.dumps(dict(bench="attention", who=WHO + " " + name, T=T, G=G, D=D, error=str(e).split("\n")[0][:200])), flush=True)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Block(nn.Module):
    def __init__(self, C, H, G, D, Fw):
        super().__init__()
        self.shape = (H, G, D)
        self.norm1, self.norm2 = nn.RMSNorm(C, eps=1e-5), nn.RMSNorm(C, eps=1e-5)
        self.qkv = nn.Linear(C, (H + 2 * G) * D, bias=False)
        self.o = nn.Linear(H * D, C, bias=False)
        self.gate_up = nn.Linear(C, 2 * Fw, bias=False)
        self.down = nn.Linear(Fw, C, bias=False)

    def forward(self, x, cos, sin):
        H, G, D = self.shape
        B, T, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, H + 2 * G, D).transpose(1, 2).split((H, G, G), 1)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=G != H)
        x = x + self.o(y.transpose(1, 2).reshape(B, T, H * D))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, T, H, G, D):
        super().__init__()
        self.embed = nn.Embedding(o.V, o.C)
        self.blocks = nn.ModuleList(Block(o.C, H, G, D, o.F) for _ in range(o.L))
        self.norm = nn.RMSNorm(o.C, eps=1e-5)
        self.head = nn.Linear(o.C, o.V, bias=False)
        for w in self.parameters():
            if w.dim() > 1:
                nn.init.normal_(w, std=0.02)
        angle = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(0, D, 2) / D)[None]
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, ids, targets):
        x = self.embed(ids)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.loss(x, targets)

    def loss(self, x, targets):
        return F.cross_entropy(self.head(self.norm(x)).view(-1, o.V).float(), targets.view(-1))


def train_run(low, whole):
    T, H, D = (o.T or [2048])[0], o.H or 16, (o.D or [128])[0]
    G = (o.G or [H])[0]
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    model = Model(T, H, G, D).to(o.device)
    if low:
        model = model.bfloat16()
    n = sum(w.numel() for w in model.parameters())
    fast = o.device == "cuda"
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, **(dict(fused=True) if fast else {}))
    ids, targets = torch.randint(o.V, (2, o.B, T), device=o.device)
    compiled = torch.compile(model) if fast and whole else model
    if fast and not whole:  # one block's code serves all of them: seconds instead of minutes
        for block in model.blocks:
            block.compile()
        model.loss = torch.compile(model.loss)

    def step():
        with torch.autocast(o.device, torch.bfloat16, enabled=not low):
            loss = compiled(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss

    for _ in range(3):
        step()
    wait()
    start = time.perf_counter()
    for _ in range(o.steps):
        loss = step()
    wait()
    s = (time.perf_counter() - start) / o.steps
    # The convention of model_train_flops_per_token: 6 x parameters (the embedding table is no product, but counted there) + attention x 3.5.
    flops = (6.0 * n + 3.5 * 2.0 * o.L * H * D * T) * o.B * T
    peak = torch.cuda.max_memory_allocated() / 1048576 if fast else 0
    who = WHO + " torch.compile" + ("" if whole else " by block") + (" bf16 weights" if low else " autocast")
    print(json.dumps(dict(bench="train", who=who, parameters=n, B=o.B, T=T, G=G, step_s=round(s, 5), tok_s=round(o.B * T / s, 1), tflops=round(flops / s * 1e-12, 2), peak_mib=round(peak),
                          loss=round(loss.item(), 4))), flush=True)


def train():
    # The whole model last: compiling 24 layers at once may take longer than there is time.
    for low, whole in ((False, False), (True, False), (False, True)):
        try:
            train_run(low, whole)
        except Exception as e:  # one variant's failure must not lose the others' figures
            print(json.dumps(dict(bench="train", who=WHO, low=low, whole=whole, error=str(e).split("\n")[0][:200])), flush=True)
        if o.device == "cuda":
            torch._dynamo.reset()
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


attention() if o.what == "attention" else train()
