#!/usr/bin/env python3
"""Writes tests/golden/hf/CASE/{config.json, model.safetensors, expected.json}: the models of tools/golden_cases.py, made and saved by
Hugging Face transformers, and what it computes with them (float64 arithmetic over the stored weights, eager attention).
tests/test_hf_golden.c reads them. expected.json:

    ids, logprob    ln p(ids[i+1] | ids[0..i])
    positions, logits, scale    the logits after ids[0..position]; the largest |logit| of all positions
    greedy, lead    the likeliest continuation of ids (null where the rotary angles change with the length), and the smallest
                    distance of its winners to the second
    note            what a reader has to know

    tools/make_goldens.py [CASE ...]      needs: pip install transformers torch"""
import json
import os
import sys

import golden_cases
import torch
import transformers
from transformers.utils import logging

logging.disable_progress_bar()
GOLDEN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "golden", "hf")


def numbers(values, digits):
    return [round(x, digits) for x in values]


def check_weights(name, path):
    """Every weight of the model comes from the file: transformers fills what it does not find with random numbers."""
    _, info = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    missing = [k for k in info["missing_keys"] if k != "lm_head.weight"]
    if missing or info["mismatched_keys"]:
        raise SystemExit(f"{name}: transformers does not find {missing} {info['mismatched_keys']}")


def expected(name, path):
    model, length_matters = golden_cases.load(path), "dynamic" in name
    ids = golden_cases.ids_of(model.config.vocab_size)
    logits = golden_cases.logits_of(model, ids[:-1])
    greedy, lead = (None, None) if length_matters else golden_cases.greedy(model, ids)
    if lead is not None and lead < 1e-3:
        raise SystemExit(f"{name}: the greedy continuation is too close a race ({lead})")
    positions = [2, len(ids) // 2, len(ids) - 2]
    out = {"made_by": f"transformers {transformers.__version__}, torch {torch.__version__}", "ids": ids,
           "logprob": numbers(golden_cases.logprob_of(logits, ids), 9), "positions": positions,
           "logits": [numbers(logits[p].tolist(), 8) for p in positions], "scale": round(logits.abs().max().item(), 6),
           "greedy": greedy, "lead": lead and round(lead, 6)}
    note = golden_cases.settings_of(name)[3].get("note")
    return {**out, "note": note} if note else out


def main():
    for name in sys.argv[1:] or golden_cases.CASES:
        path = os.path.join(GOLDEN, name)
        golden_cases.save(name, path)
        for extra in os.listdir(path):
            if extra not in ("config.json", "model.safetensors"):
                os.remove(os.path.join(path, extra))
        os.chmod(os.path.join(path, "model.safetensors"), 0o644)
        check_weights(name, path)
        result = expected(name, path)
        with open(os.path.join(path, "expected.json"), "w") as out:
            out.write("{\n" + ",\n".join(f'  "{k}": {json.dumps(v)}' for k, v in result.items()) + "\n}\n")
        size = sum(os.path.getsize(os.path.join(path, f)) for f in os.listdir(path))
        print(f"{name}: {-sum(result['logprob']) / len(result['logprob']):.4f} nats/token, {size} bytes", flush=True)


main()
