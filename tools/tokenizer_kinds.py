"""The tokenizer.json structures of published model families, over vocabularies at hand: what differs between families is the
normalizer, the pre-tokenizer, the added tokens, ignore_merges and the template, and that is what these imitate. The vocabularies are
those of the GPT-2 directory and the Llama-2 tokenizer.json given.

    from tokenizer_kinds import write_kinds; write_kinds(folder, gpt2_dir, llama2_json) -> paths
"""
import json
import os

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"


def byte_level(prefix=False, regex=True):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def split(pattern, behavior="Isolated", kind="Regex", invert=False):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def template(before, after, ids):
    item = lambda t: {"SpecialToken": {"id": t, "type_id": 0}}
    one = [item(t) for t in before] + [{"Sequence": {"id": "A", "type_id": 0}}] + [item(t) for t in after]
    return {"type": "TemplateProcessing", "single": one, "pair": one + [{"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in before + after}}


def added(content, id, special=True, **flags):
    return {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": not special,
            "special": special, **flags}


def kinds_of_bytes(vocab, merges):
    n = len(vocab)

    def kind(pre, tokens, normalizer=None, post=None, **model):
        return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": normalizer,
                "pre_tokenizer": pre, "post_processor": post or byte_level(), "decoder": byte_level(),
                "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                          "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": merges, **model}}

    end = added("<|endoftext|>", vocab["<|endoftext|>"])
    spaces = [added(" " * k, n + i, False) for i, k in enumerate(range(24, 1, -1))]
    tabs = [added("\t" * k, n + len(spaces) + i, False, normalized=False) for i, k in enumerate(range(9, 1, -1))]
    llama3 = [added(t, n + i) for i, t in enumerate(("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|eot_id|>"))]
    qwen = [end] + [added(t, n + i) for i, t in enumerate(("<|im_start|>", "<|im_end|>"))]
    opt = [added("</s>", n, normalized=True), added("<pad>", n + 1, normalized=True)]
    mark = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    return {
        "gpt2": kind(byte_level(), [end]),
        "opt": kind(byte_level(), opt, post=template(["</s>"], [], {"</s>": n})),
        "pythia": kind(byte_level(), [end] + spaces, {"type": "NFC"}),
        "mpt": kind(byte_level(), [end, added("<|padding|>", n + len(spaces))] + spaces, {"type": "NFC"}),
        "phi": kind(byte_level(), [end] + [dict(t, normalized=False) for t in spaces] + tabs),
        "llama3": kind(sequence(split(LLAMA3), byte_level(regex=False)), llama3, None,
                       {"type": "Sequence", "processors": [byte_level(), template(["<|begin_of_text|>"], [], {"<|begin_of_text|>": n})]},
                       ignore_merges=True),
        "qwen2": kind(sequence(split(QWEN2), byte_level(regex=False)), qwen, {"type": "NFC"}),
        "olmo": kind(byte_level(), [end, added("|||EMAIL_ADDRESS|||", n, False)], mark),
        "bloom": kind(sequence(split(BLOOM), byte_level(regex=False)), [end, added("<unk>", n), added("<s>", n + 1)]),
        "falcon": kind(sequence({"type": "Punctuation", "behavior": "Contiguous"}, byte_level(), {"type": "Digits", "individual_digits": False},
                                split("[0-9][0-9][0-9]")), [end, added(">>TITLE<<", n)]),
        "starcoder": kind(sequence({"type": "Digits", "individual_digits": True}, byte_level()), [end, added("<fim_prefix>", n)]),
    }


def gemma_of(llama):
    """Gemma: spaces become U+2581, no text is put in front, a word ends with its spaces, byte fallback; runs of newlines are added tokens."""
    vocab = dict(llama["model"]["vocab"])
    n = len(vocab)
    ids = {"<s>": vocab["<s>"]}
    lines = [added("\n" * k, n + k - 2, False, normalized=False) for k in range(2, 12)]
    return dict(llama, added_tokens=llama["added_tokens"] + lines, normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
                pre_tokenizer=split(" ", "MergedWithPrevious", "String"), post_processor=template(["<s>"], [], ids),
                decoder={"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                                                          {"type": "ByteFallback"}, {"type": "Fuse"}]})


def write_kinds(folder, gpt2_dir, llama2_json):
    with open(os.path.join(gpt2_dir, "vocab.json"), encoding="utf-8") as f:
        vocab = json.load(f)
    name = next(n for n in ("merges.txt", "vocab.bpe") if os.path.exists(os.path.join(gpt2_dir, n)))
    with open(os.path.join(gpt2_dir, name), encoding="utf-8") as f:
        merges = [line.rstrip("\r\n").split(" ") for i, line in enumerate(f) if line.strip() and not (i == 0 and line.startswith("#version"))]
    with open(llama2_json, encoding="utf-8") as f:
        llama = json.load(f)
    made = {**kinds_of_bytes(vocab, merges), "llama2": llama, "gemma": gemma_of(llama)}
    paths = []
    for kind, root in made.items():
        paths.append(os.path.join(folder, kind + ".json"))
        with open(paths[-1], "w", encoding="utf-8") as f:
            json.dump(root, f)
    return paths
