#!/usr/bin/env python3
"""Asks transformers what configurations mean and writes the numbers that every decoder backend must meet.

    python3 -m venv VENV && VENV/bin/pip install torch transformers numpy
    VENV/bin/python backends/tools/python/config_references.py            # writes backends/model/tests/references.json
    VENV/bin/python backends/tools/python/config_references.py --check    # exit 1 if that file says otherwise

`rope`: the inverse frequencies and the attention factor of a rotary embedding, or that transformers refuses the configuration.
`models`: log-probabilities of rows under tiny models, in float64 where the package lets it. Their weights are drawn by a rule
that `tests/drawn/mod.rs` writes down a second time.
"""

import argparse
import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

OUT = Path(__file__).resolve().parents[2] / "model" / "tests" / "references.json"
transformers.logging.set_verbosity_error()
torch.set_num_threads(2)

BASE = {
    "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 61, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu",
}
THETA = {"rope_theta": 1000000.0}
V5 = {"rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
LINEAR = {"type": "linear", "factor": 2.0}
NESTED = {"full_attention": {"rope_type": "default", "rope_theta": 1000000.0}}

# Name, keys beside BASE. Each is asked of all three families.
ROPE = [
    ("nothing said", {}),
    ("rope_theta alone", THETA),
    ("rope_theta as a whole number", {"rope_theta": 1000000}),
    ("rope_theta null", {"rope_theta": None}),
    ("rope_theta a text", {"rope_theta": "1e6"}),
    ("rope_scaling null", {**THETA, "rope_scaling": None}),
    ("rope_parameters null", {**THETA, "rope_parameters": None}),
    ("rope_parameters empty", {**THETA, "rope_parameters": {}}),
    ("rope_parameters of version 5", V5),
    ("a base beside and inside", {**V5, "rope_theta": 500000.0}),
    ("rope_parameters without a base", {**THETA, "rope_parameters": {"rope_type": "default"}}),
    ("a base of null inside", {**THETA, "rope_parameters": {"rope_type": "default", "rope_theta": None}}),
    ("a type of null", {"rope_parameters": {"rope_type": None, "rope_theta": 1000000.0}}),
    ("rope_scaling with the base in it", {"rope_scaling": {"rope_theta": 1000000.0, "rope_type": "default"}}),
    ("linear", {**THETA, "rope_scaling": LINEAR}),
    ("linear without a factor", {**THETA, "rope_scaling": {"type": "linear"}}),
    ("linear with a factor of null", {**THETA, "rope_scaling": {"type": "linear", "factor": None}}),
    ("two types", {**THETA, "rope_scaling": {**LINEAR, "rope_type": "default"}}),
    ("a factor without a type", {**THETA, "rope_scaling": {"factor": 4.0}}),
    ("rope_scaling replaces rope_parameters", {**V5, "rope_scaling": LINEAR}),
    ("a factor without a type replaces rope_parameters", {**V5, "rope_scaling": {"factor": 4.0}}),
    ("linear by 1 replaces rope_parameters", {**V5, "rope_scaling": {"type": "linear", "factor": 1.0}}),
    ("an empty rope_scaling replaces nothing", {**V5, "rope_scaling": {}}),
    ("llama3", {**THETA, "rope_scaling": LLAMA3}),
    ("llama3 of version 5", {"rope_parameters": {**LLAMA3, **THETA}}),
    ("llama3 beside rope_parameters of null", {**THETA, "rope_parameters": None, "rope_scaling": LLAMA3}),
    ("llama3 replaces rope_parameters", {**V5, "rope_scaling": LLAMA3}),
    ("llama3 without a length", {**THETA, "rope_scaling": {k: v for k, v in LLAMA3.items() if k[0] != "o"}}),
    ("llama3 without low_freq_factor", {**THETA, "rope_scaling": {k: v for k, v in LLAMA3.items() if k[0] != "l"}}),
    ("yarn", {**THETA, "rope_scaling": YARN}),
    ("yarn of version 5", {"rope_parameters": {**YARN, **THETA}}),
    ("yarn beside rope_parameters of null", {**THETA, "rope_parameters": None, "rope_scaling": YARN}),
    ("yarn over a small base", {"rope_theta": 10000.0, "rope_scaling": YARN}),
    ("yarn without a length", {**THETA, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    ("yarn with the length beside it", {**THETA, "rope_scaling": YARN, "original_max_position_embeddings": 128}),
    ("yarn with an attention factor", {**THETA, "rope_scaling": {**YARN, "attention_factor": 0.7}}),
    ("yarn with mscale", {**THETA, "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}),
    ("yarn with half of mscale", {**THETA, "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0}}),
    ("yarn with betas", {**THETA, "rope_scaling": {**YARN, "beta_fast": 8, "beta_slow": 2}}),
    ("yarn with betas of nothing", {**THETA, "rope_scaling": {**YARN, "beta_fast": 0, "beta_slow": None}}),
    ("yarn without truncating", {**THETA, "rope_scaling": {**YARN, "truncate": False}}),
    ("yarn truncating null", {**THETA, "rope_scaling": {**YARN, "truncate": None}}),
    ("yarn with a factor of null", {**THETA, "rope_scaling": {**YARN, "factor": None}}),
    ("yarn without a factor", {**THETA, "rope_scaling": {k: v for k, v in YARN.items() if k != "factor"}}),
    ("yarn with a factor below 1", {**THETA, "rope_scaling": {**YARN, "factor": 0.5}}),
    ("a type that is not known", {**THETA, "rope_scaling": {"type": "su", "factor": 2.0}}),
    ("dynamic", {**THETA, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    ("longrope", {**THETA, "rope_scaling": {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 8,
                                            "long_factor": [2.0] * 8, "original_max_position_embeddings": 64}}),
    ("part of the dimensions", {**THETA, "partial_rotary_factor": 0.5}),
    ("one for each kind of layer", {"rope_parameters": NESTED}),
    ("one for each kind of layer, in rope_scaling", {"rope_scaling": NESTED}),
    ("rope_scaling a text", {**THETA, "rope_scaling": "linear"}),
    ("rope_parameters false", {**THETA, "rope_parameters": False}),
    ("head_dim left out", {**THETA, "head_dim": "-"}),
    ("head_dim null", {**THETA, "head_dim": None}),
    ("num_key_value_heads left out", {**THETA, "num_key_value_heads": "-"}),
    ("num_key_value_heads null", {**THETA, "num_key_value_heads": None}),
]

MODELS = {
    "llama3": {**BASE, "model_type": "llama", "tie_word_embeddings": True, "rope_theta": 10000.0, "rope_scaling": LLAMA3},
    "llama3 of version 5": {**BASE, "model_type": "llama", "tie_word_embeddings": False,
                            "rope_parameters": {**LLAMA3, "rope_theta": 10000.0, "factor": 32.0}},
    "yarn": {**BASE, "model_type": "qwen3", "tie_word_embeddings": True, "rope_theta": 10000.0, "rope_scaling": YARN},
    "yarn with betas and mscale": {**BASE, "model_type": "qwen2", "tie_word_embeddings": False, "rope_parameters": {
        **YARN, "rope_theta": 10000.0, "beta_fast": 16, "beta_slow": 0.5, "truncate": False, "mscale": 0.7,
        "mscale_all_dim": 0.2}},
    "linear": {**BASE, "model_type": "llama", "tie_word_embeddings": True, "rope_theta": 10000.0, "rope_scaling": LINEAR},
    # The head differs from the embedding that config.json ties it to.
    "a head of its own": {**BASE, "model_type": "qwen3", "tie_word_embeddings": True, "rope_theta": 10000.0},
}
LENGTHS = [3, 40, 129]
U32 = 0xFFFFFFFF


def key_of(name):
    key = 0x811C9DC5
    for byte in name.encode():
        key = ((key ^ byte) * 0x01000193) & U32
    return key


def uniform(name, n):
    """Numbers in [-1, 1), each a function of the name and its place: 24 bits of a 32-bit mix (lowbias32)."""
    x = (np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B9) + np.uint64(key_of(name))) & np.uint64(U32)
    for shift, factor in [(16, 0x7FEB352D), (15, 0x846CA68B)]:
        x ^= x >> np.uint64(shift)
        x = (x * np.uint64(factor)) & np.uint64(U32)
    x ^= x >> np.uint64(16)
    return ((x >> np.uint64(8)).astype(np.float64) / 2.0**23 - 1.0).astype(np.float32)


def weight(name, shape):
    values = uniform(name, int(np.prod(shape))) * np.float32(0.35)
    return torch.from_numpy((values + np.float32("norm" in name)).reshape(tuple(shape)))


def row(length):
    return [int(x) for x in (uniform(f"row {length}", length).astype(np.float64) + 1.0) / 2.0 * BASE["vocab_size"]]


def asked(family, keys):
    raw = {k: v for k, v in {**BASE, "model_type": family, **keys}.items() if v != "-"}
    try:
        config = AutoConfig.for_model(**copy.deepcopy(raw))
        rope = AutoModelForCausalLM.from_config(config).model.rotary_emb
        frequencies = rope.inv_freq.tolist()
        if not all(np.isfinite(frequencies)):
            return {"config": raw, "error": "not finite"}
        heads = [config.num_attention_heads, config.num_key_value_heads, 2 * len(frequencies)]
        return {"config": raw, "inv_freq": frequencies, "attention_factor": float(rope.attention_scaling), "heads": heads}
    except Exception as error:
        return {"config": raw, "error": type(error).__name__}


def scored(name):
    raw = MODELS[name]
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**copy.deepcopy(raw)), dtype=torch.float32, attn_implementation="eager").double()
    if name == "a head of its own":
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    for tensor, parameter in model.named_parameters():
        parameter.data = weight(tensor, parameter.shape).double()
    model.eval()
    rows = [row(length) for length in LENGTHS]
    logprobs = []
    with torch.no_grad():
        for ids in rows:
            table = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].double(), -1)
            logprobs.append([table[i, token].item() for i, token in enumerate(ids[1:])])
    tensors = {tensor: list(parameter.shape) for tensor, parameter in model.named_parameters()}
    return {"name": name, "config": raw, "tensors": tensors, "rows": rows, "logprobs": logprobs}


def rounded(value):
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def worst(old, new):
    """The largest relative difference of two results of the same shape."""
    if isinstance(new, dict) and isinstance(old, dict) and old.keys() == new.keys():
        return max((worst(old[key], new[key]) for key in new), default=0.0)
    if isinstance(new, list) and isinstance(old, list) and len(old) == len(new):
        return max((worst(*pair) for pair in zip(old, new)), default=0.0)
    if isinstance(new, float) and isinstance(old, (int, float)):
        return abs(old - new) / max(abs(new), 1e-3)
    return 0.0 if old == new else float("inf")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the stored file instead of writing it")
    args = parser.parse_args()
    families = ["qwen3", "qwen2", "llama"]
    rope = [{"name": name, **asked(family, keys)} for name, keys in ROPE for family in families]
    models = [scored(name) for name in MODELS]
    rope, models = rounded(rope), rounded(models)
    if args.check:
        stored = json.loads(OUT.read_text())
        difference = max(worst(stored["rope"], rope), worst(stored["models"], models))
        print(f"largest relative difference {difference:.2g}")
        sys.exit(difference > 1e-6)
    lines = lambda items: ",\n".join(json.dumps(item) for item in items)
    OUT.write_text(f'{{"made_by": "backends/tools/python/config_references.py", "transformers": "{transformers.__version__}", '
                   f'"rope": [\n{lines(rope)}\n], "models": [\n{lines(models)}\n]}}\n')


if __name__ == "__main__":
    main()
