"""Checks both ways with the real packages: what transformers and peft write, Karat reads; what Karat writes, they read.

Run in an environment with torch, transformers, peft and safetensors:

    cargo build --package karat-cli && python backends/candle/scripts/interop.py target/debug/karat

For each family a small random model is made by transformers, scored by Karat, trained by Karat (full and LoRA) and the
results scored by transformers and peft; a LoRA adapter made by peft is scored by Karat. All log-probabilities must
agree within 1e-4 with torch's in float64; what torch itself loses in float32 is printed beside it.
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

TOLERANCE = 1e-4
KARAT = sys.argv[1]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
random.seed(1)
ROWS = [[random.randrange(200) for _ in range(n)] for n in (5, 33, 70)]


def karat(*args):
    done = subprocess.run([KARAT, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"karat {' '.join(map(str, args))} failed:\n{done.stderr}")
    return done.stdout


def by_karat(folder, model, adapter=None):
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": str(i), "ids": row}) + "\n" for i, row in enumerate(ROWS)))
    out = karat("score", "--model", model, *(["--adapter", adapter] if adapter else []), "--input", rows)
    return [torch.tensor(json.loads(line)["token_logprobs"], dtype=torch.float64) for line in out.splitlines()]


@torch.no_grad()
def by_torch(model):
    """Log-probabilities of all rows in float64 and in float32."""
    model.eval()
    single = rows_by_torch(model)
    double = rows_by_torch(model.double())
    model.float()
    return double, single


def rows_by_torch(model):
    scores = []
    for row in ROWS:
        ids = torch.tensor([row])
        logprobs = model(ids).logits.log_softmax(-1)[0, :-1]
        scores.append(logprobs.gather(1, ids[0, 1:, None])[:, 0])
    return scores


def agree(what, ours, theirs):
    double, single = theirs
    worst = max((a - b).abs().max().item() for a, b in zip(ours, double, strict=True))
    torch_own = max((a - b).abs().max().item() for a, b in zip(single, double, strict=True))
    print(f"{what}: {worst:.1e} (torch in float32: {torch_own:.1e})")
    if worst > TOLERANCE:
        sys.exit(f"{what}: differs by {worst}")


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def check(family, folder, **extra):
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        family, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=200, max_position_embeddings=128, initializer_range=0.1,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, **extra)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # values that show if they are left out
            torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.3)
    base = folder / "base"
    model.save_pretrained(base)
    agree(f"{family}: a model of transformers", by_karat(folder, base), by_torch(model))
    half = folder / "bf16"
    load(base).to(torch.bfloat16).save_pretrained(half)
    agree(f"{family}: its bf16 copy, widened", by_karat(folder, half), by_torch(load(half)))

    peft = get_peft_model(load(base), LoraConfig(r=4, lora_alpha=3, target_modules=TARGETS, use_rslora=True,
                                                 init_lora_weights=False))
    theirs = folder / "peft"
    peft.save_pretrained(theirs)
    agree(f"{family}: an adapter of peft", by_karat(folder, base, theirs), by_torch(peft))

    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps({"input_ids": r, "labels": [-100] * 3 + r[3:]}) + "\n" for r in ROWS))
    for method in ("full", "lora"):
        out = folder / method
        karat("train", "--model", base, "--method", method, "--data", data, "--ids", "--out", out,
              "--set", "learning_rate=1e-2", "--set", "epochs=2", "--set", "batch_size=1", "--set", "accumulation=1")
        last = sorted(out.rglob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[-1]
        if method == "full":
            agree(f"{family}: our full checkpoint", by_karat(folder, last), by_torch(load(last)))
        else:
            loaded = PeftModel.from_pretrained(load(base), last)
            agree(f"{family}: our adapter", by_karat(folder, base, last), by_torch(loaded))
            agree(f"{family}: our adapter merged", by_karat(folder, base, last), by_torch(loaded.merge_and_unload()))


for family, extra in [
    ("qwen3", {"tie_word_embeddings": True}),
    ("qwen3", {"tie_word_embeddings": False, "attention_bias": True}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("llama", {"tie_word_embeddings": False}),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
]:
    with tempfile.TemporaryDirectory() as name:
        check(family, Path(name), **extra)
print("all agree")
