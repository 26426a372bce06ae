#!/usr/bin/env python3
"""Trains tiny models with transformers and peft and writes the numbers that Karat's tests must meet.

    python3 -m venv VENV && VENV/bin/pip install torch transformers peft safetensors numpy
    VENV/bin/python backends/tools/python/native_references.py            # writes backends/native/tests/references.json
    VENV/bin/python backends/tools/python/native_references.py --check    # exit 1 if that file says otherwise

Nothing of Karat runs here. Weights, adapters, rows and dropout masks are drawn by the rules that Karat documents (Philox4x32-10
by counter, keyed by names), written down a second time below; everything else is what the packages do, in float64 where they
let it. `tests/references.rs` draws the same and compares losses, gradient norms, learning rates, final tensors, the names and
shapes of what is stored, and the adapter's configuration.
"""

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, get_scheduler

OUT = Path(__file__).resolve().parents[2] / "native" / "tests" / "references.json"
U32 = 0xFFFFFFFF
torch.set_num_threads(2)


def philox(seed, c0, c1, c2, c3):
    """The four words of each block; the counters are arrays or numbers."""
    c = [np.asarray(x, dtype=np.uint64) for x in np.broadcast_arrays(c0, c1, c2, c3)]
    k = [seed & U32, (seed >> 32) & U32]
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        hi, lo, mask = (lambda x: x >> np.uint64(32)), (lambda x: x & np.uint64(U32)), np.uint64(U32)
        c = [(hi(p1) ^ c[1] ^ np.uint64(k[0])) & mask, lo(p1), (hi(p0) ^ c[3] ^ np.uint64(k[1])) & mask, lo(p0)]
        k = [(k[0] + 0x9E3779B9) & U32, (k[1] + 0xBB67AE85) & U32]
    return c


def name_key(name):
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = ((key ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return key


def blocks(seed, n, key):
    places = np.arange(n, dtype=np.uint64)
    return philox(seed, places & np.uint64(U32), places >> np.uint64(32), key & U32, key >> 32)


def unit(hi, lo):
    return ((hi << np.uint64(21)) ^ (lo >> np.uint64(11))).astype(np.float64) / 2.0**53


def uniform(seed, n, key):
    w = blocks(seed, n, key)
    return unit(w[0], w[1])


def normal(seed, n, key):
    w = blocks(seed, n, key)
    return np.sqrt(-2.0 * np.log(1.0 - unit(w[0], w[1]))) * np.cos(2.0 * np.pi * unit(w[2], w[3]))


def float32(values, shape):
    return torch.from_numpy(values.astype(np.float32).reshape(tuple(shape))).double()


def drawn_weight(name, shape, seed):
    """The tests' own rule: matrices N(0, 0.15), norms around 1 and biases around 0 with deviation 0.3."""
    draw = normal(seed, int(np.prod(shape)), name_key(name))
    if len(shape) == 2:
        return float32(draw * 0.15, shape)
    return float32(draw * 0.3 + (0.0 if name.endswith("bias") else 1.0), shape)


def kept(count, first, p, seed, step, module):
    """Which of `count` elements from place `first` on dropout keeps, and what it multiplies them by."""
    threshold = round(p * 65536)
    place = np.arange(first, first + count, dtype=np.uint64)
    block, offset = place // np.uint64(128), place % np.uint64(128)
    lane, half = offset % np.uint64(16), offset // np.uint64(16)
    number = block * np.uint64(16) + lane
    words = np.stack(philox(seed, number & np.uint64(U32), number >> np.uint64(32), step, module))
    word = words[(half // np.uint64(2)).astype(int), np.arange(count)]
    bits = (word >> (np.uint64(16) * (half % np.uint64(2)))) & np.uint64(0xFFFF)
    return bits >= threshold, np.float32(1.0 / (1.0 - threshold / 65536))


class Dropout(torch.nn.Module):
    """In the place of peft's: the mask is a function of seed, step, module and place."""

    now = {"step": 0, "first_token": 0}

    def __init__(self, p, seed, module):
        super().__init__()
        self.p, self.seed, self.module = p, seed, module

    def forward(self, x):
        if not self.training:
            return x
        mask, scale = kept(
            x.numel(), self.now["first_token"] * x.shape[-1], self.p, self.seed, self.now["step"], self.module)
        return x * torch.from_numpy(mask.reshape(tuple(x.shape))) * float(scale)


VOCAB = 61
COMMON = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6, "head_dim": 8,
    "vocab_size": VOCAB, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "rope_theta": 10000.0,
}
MODELS = {
    "qwen3": {**COMMON, "model_type": "qwen3", "num_key_value_heads": 3, "tie_word_embeddings": True},
    "qwen3-untied": {**COMMON, "model_type": "qwen3", "num_key_value_heads": 2, "tie_word_embeddings": False},
    # Its heads are as wide as its rows allow: head_dim is not a key of this family.
    "qwen2": {**COMMON, "model_type": "qwen2", "num_key_value_heads": 2, "num_attention_heads": 4, "head_dim": 6,
              "tie_word_embeddings": True},
    # SmolLM2's shape: three queries to a key, tied, no biases.
    "llama": {**COMMON, "model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True,
              "rope_theta": 100000.0},
}
# Stretched frequencies; yarn also scales queries and keys, and so their gradients.
STRETCHED = {
    "llama3": {**COMMON, "model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}},
    "qwen3-yarn": {**COMMON, "model_type": "qwen3", "num_key_value_heads": 3, "tie_word_embeddings": True,
                   "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                                       "original_max_position_embeddings": 16}},
}
SEED, MODEL_SEED = 7, 11
LENGTHS = [12, 7, 20, 9, 15, 5, 11, 18]
STEPS = [[[s % 8, (s + 3) % 8], [(s + 5) % 8]] for s in range(10)]


def rows():
    data = []
    for number, length in enumerate(LENGTHS):
        ids = (uniform(1, length, name_key(f"row {number}")) * VOCAB).astype(int).tolist()
        data.append((ids, [-100 if i < length // 3 else token for i, token in enumerate(ids)]))
    return data


def scenario(name, model, lora=None, **settings):
    defaults = {"learning_rate": 5e-3, "schedule": "linear", "warmup": 0, "min_lr_rate": None, "weight_decay": 0.0,
                "max_grad_norm": 1.0}
    return {"name": name, "model": model, "lora": lora, **defaults, **settings}


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SCENARIOS = [
    made
    for model in MODELS
    for made in [
        scenario(f"{model} full, linear, weight decay", model, weight_decay=0.1),
        scenario(f"{model} LoRA, cosine with warm-up, dropout", model,
                 {"r": 4, "lora_alpha": 8, "lora_dropout": 0.25, "target_modules": ALL},
                 schedule="cosine", warmup=3, weight_decay=0.05, learning_rate=2e-2),
        scenario(f"{model} DoRA and rsLoRA, constant with warm-up, dropout", model,
                 {"r": 3, "lora_alpha": 4, "lora_dropout": 0.2, "target_modules": "all-linear", "use_dora": True,
                  "use_rslora": True},
                 schedule="constant_with_warmup", warmup=2, learning_rate=2e-2),
    ]
] + [
    scenario("DoRA without dropout", "qwen2",
             {"r": 2, "lora_alpha": 3, "lora_dropout": 0.0, "target_modules": ["q_proj", "down_proj"], "use_dora": True},
             weight_decay=0.1, learning_rate=2e-2),
    scenario("patterns, exclusions, gaussian init, cosine with a floor", "qwen3",
             {"r": 4, "lora_alpha": 6, "lora_dropout": 0.1, "target_modules": r"model\.layers\.\d+\.(self_attn|mlp)\..*_proj",
              "exclude_modules": ["k_proj", "layers.1.mlp.up_proj"], "init_lora_weights": "gaussian",
              "rank_pattern": {"down_proj": 2, r"layers\.0\.self_attn\.q_proj": 6}, "alpha_pattern": {"mlp.*": 3.5}},
             schedule="cosine_with_min_lr", min_lr_rate=0.1, warmup=2, learning_rate=2e-2),
    scenario("modules trained whole beside an adapter on one layer", "qwen3-untied",
             {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"],
              "layers_to_transform": [1], "modules_to_save": ["lm_head", "embed_tokens", "model.norm"]},
             weight_decay=0.1, max_grad_norm=0.0, learning_rate=1e-2),
    scenario("norms and a whole projection beside DoRA", "llama",
             {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj", "gate_proj"], "use_dora": True,
              "modules_to_save": ["norm", "v_proj"]},
             schedule="constant", weight_decay=0.1, learning_rate=1e-2),
] + [
    made
    for model in STRETCHED
    for made in [
        scenario(f"{model} full", model, weight_decay=0.1),
        scenario(f"{model} LoRA", model, {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ALL},
                 learning_rate=2e-2),
    ]
]
MODELS |= STRETCHED



def made(model_name):
    config = AutoConfig.for_model(**copy.deepcopy(MODELS[model_name]))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").double()
    for name, parameter in model.named_parameters():
        parameter.data = drawn_weight(name, parameter.shape, MODEL_SEED)
    model.tie_weights()
    return model


def adapted(model, lora):
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora)).double()
    order = [f"{part}.{name}" for part, names in
             [("self_attn", ALL[:4]), ("mlp", ALL[4:])] for name in names]
    for name, module in peft.named_modules():
        if not hasattr(module, "lora_A") or "default" not in module.lora_A:
            continue
        path = name.removeprefix("base_model.model.")
        layer, leaf = path.removeprefix("model.layers.").split(".", 1)
        stored = f"base_model.model.{path}.lora_A.weight"
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        r, width = a.shape
        if lora.get("init_lora_weights") == "gaussian":
            a.data = float32(normal(SEED, r * width, name_key(stored)) / r, a.shape)
        else:
            a.data = float32((uniform(SEED, r * width, name_key(stored)) * 2 - 1) / np.sqrt(width), a.shape)
        assert not b.any()
        if lora["lora_dropout"]:
            module.lora_dropout["default"] = Dropout(lora["lora_dropout"], SEED, int(layer) * 7 + order.index(leaf))
    return peft


def row_loss(model, ids, labels):
    logits = model(torch.tensor([ids])).logits[0, :-1].double()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), ignore_index=-100, reduction="sum")


def count(labels):
    return sum(label != -100 for label in labels[1:])


def train(case):
    data = rows()
    model = made(case["model"])
    if case["lora"]:
        model = adapted(model, case["lora"])
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": [p for name, p in trained if name in decayed], "weight_decay": case["weight_decay"]},
         {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0}],
        lr=case["learning_rate"], betas=(0.9, 0.999), eps=1e-8)
    extra = {"min_lr_rate": case["min_lr_rate"]} if case["min_lr_rate"] is not None else None
    schedule = get_scheduler(case["schedule"], optimizer, num_warmup_steps=case["warmup"],
                             num_training_steps=len(STEPS), scheduler_specific_kwargs=extra)
    model.train()
    log = []
    for step, micros in enumerate(STEPS, 1):
        window = sum(count(data[row][1]) for micro in micros for row in micro)
        Dropout.now.update(step=step, first_token=0)
        loss = 0.0
        for row in (row for micro in micros for row in micro):
            part = row_loss(model, *data[row]) / window
            part.backward()
            loss += part.item()
            Dropout.now["first_token"] += len(data[row][0])
        limit = case["max_grad_norm"] or float("inf")
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in trained], limit).item()
        log.append({"loss": loss, "grad_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"]})
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        heldout = sum(row_loss(model, *row).item() for row in data) / sum(count(labels) for _, labels in data)
    result = {**case, "trainable": sum(p.numel() for _, p in trained), "eval_loss": heldout, "steps": log}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        name = "adapter_model.safetensors" if case["lora"] else "model.safetensors"
        with safe_open(Path(folder) / name, "pt") as file:
            result["tensors"] = {key: summary(file.get_tensor(key)) for key in sorted(file.keys())}
        if case["lora"]:
            result["adapter_config"] = json.loads((Path(folder) / "adapter_config.json").read_text())
    return result


def summary(tensor):
    """Shape, norm and a weighted sum that no permutation of the elements keeps."""
    values = tensor.double().flatten()
    weights = torch.cos(torch.arange(len(values), dtype=torch.float64))
    return {"shape": list(tensor.shape), "norm": values.norm().item(), "probe": (values * weights).sum().item()}


def rounded(value):
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, (list, set)) else value


def worst(old, new):
    """The largest relative difference of two results of the same shape."""
    if isinstance(new, dict) and isinstance(old, dict) and old.keys() == new.keys():
        return max((worst(old[key], new[key]) for key in new), default=0.0)
    if isinstance(new, list) and isinstance(old, list) and len(old) == len(new):
        plain = all(isinstance(item, str) for item in old + new)
        pairs = zip(sorted(old), sorted(new)) if plain else zip(old, new)
        return max((worst(*pair) for pair in pairs), default=0.0)
    if isinstance(new, float) and isinstance(old, (int, float)):
        return abs(old - new) / max(abs(new), 1e-3)
    return 0.0 if old == new else float("inf")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the stored file instead of writing it")
    args = parser.parse_args()
    results = {
        "made_by": "backends/tools/python/native_references.py",
        "seed": SEED, "model_seed": MODEL_SEED, "lengths": LENGTHS, "steps": STEPS, "models": MODELS,
        "scenarios": [],
    }
    for case in SCENARIOS:
        results["scenarios"].append(train(case))
        print(f"{case['name']}: loss {results['scenarios'][-1]['steps'][0]['loss']:.4f} to "
              f"{results['scenarios'][-1]['steps'][-1]['loss']:.4f}", file=sys.stderr)
    results = rounded(results)
    if args.check:
        difference = worst(json.loads(OUT.read_text()), results)
        print(f"largest relative difference {difference:.2g}")
        sys.exit(difference > 1e-6)
    head = {key: value for key, value in results.items() if key != "scenarios"}
    lines = ",\n".join(json.dumps(case, sort_keys=True) for case in results["scenarios"])
    OUT.write_text(json.dumps(head)[:-1] + ', "scenarios": [\n' + lines + "\n]}\n")


if __name__ == "__main__":
    main()
