#!/usr/bin/env python3
"""Checks both ways with the real packages: what transformers and peft write, Karat reads; what Karat writes, they read.

    python3 -m venv VENV && VENV/bin/pip install torch transformers peft safetensors
    cargo build --package karat-cli

    # models and adapters made for it, of every family
    VENV/bin/python backends/tools/python/interop.py target/debug/karat

    # a model or an adapter of yours; without --input, rows are made up below the model's vocabulary
    VENV/bin/python backends/tools/python/interop.py target/debug/karat --model DIR [--adapter DIR] [--input FILE.jsonl]

For each family a small random model is made by transformers, scored by Karat, trained by Karat (full, LoRA, DoRA with modules
trained whole) and the results scored by transformers and peft, beside the weights and merged; adapters made by peft are
scored by Karat. All log-probabilities must agree within 1e-4 with torch's in float64; what torch itself loses in float32 is
printed beside it. A folder that the packages load only in part (missing or unexpected weights, tensors with other values, an
adapter that changes nothing) is an error. `--input` lines are those of `karat score`: {"id", "ids": [..]} or {"id", "text"}.

Exit codes: 0 agree, 1 differ, 2 a folder or the input cannot be used.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def fail(message, code=2):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


class Karat:
    """The program, and the rows that both sides score."""

    def __init__(self, program, rows, folder):
        self.program, self.rows, self.input = program, rows, folder / "rows.jsonl"
        self.input.write_text("".join(json.dumps({"id": str(i), "ids": row}) + "\n" for i, row in enumerate(rows)))

    def run(self, *args):
        done = subprocess.run([self.program, *map(str, args)], capture_output=True, text=True)
        if done.returncode:
            fail(f"karat {' '.join(map(str, args))} failed:\n{done.stderr}")
        return done.stdout

    def score(self, model, adapter=None):
        out = self.run("score", "--model", model, *(["--adapter", adapter] if adapter else []), "--input", self.input)
        return [torch.tensor(json.loads(line)["token_logprobs"], dtype=torch.float64) for line in out.splitlines()]

    @torch.no_grad()
    def by_torch(self, model):
        """Log-probabilities of all rows in float64 and in float32."""

        def score():
            scores = []
            for row in self.rows:
                ids = torch.tensor([row])
                logprobs = model(ids).logits.log_softmax(-1)[0, :-1]
                scores.append(logprobs.gather(1, ids[0, 1:, None])[:, 0])
            return scores

        model.eval()
        single = score()
        model.double()
        double = score()
        model.float()
        return double, single

    def agree(self, what, ours, theirs):
        double, single = theirs
        if [len(row) for row in ours] != [len(row) for row in double]:
            fail(f"{what}: other numbers of log-probabilities", 1)
        worst = max((a - b).abs().max().item() for a, b in zip(ours, double, strict=True))
        torch_own = max((a - b).abs().max().item() for a, b in zip(single, double, strict=True))
        print(f"{what}: {worst:.1e} (torch in float32: {torch_own:.1e})")
        if not worst <= TOLERANCE:
            fail(f"{what}: differs by {worst}", 1)


def load(folder):
    """A model, if all of it and nothing else is there."""
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        fail(f"transformers refuses {folder}: {error}")
    for kind in ["missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"]:
        if info.get(kind):  # a tied head has no tensor of its own and is not counted as missing
            fail(f"{folder}: {kind}: {sorted(map(str, info[kind]))[:5]}")
    return model


def load_adapter(base, folder):
    """The adapter on the model, if peft loads every tensor with its values and it changes something."""
    with safe_open(str(Path(folder) / "adapter_model.safetensors"), "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}
    try:
        model = PeftModel.from_pretrained(load(base), folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        fail(f"peft refuses {folder}: {error}")
    loaded = get_peft_model_state_dict(model)
    if stored.keys() != loaded.keys():
        fail(f"{folder}: stored but not loaded {sorted(stored.keys() - loaded.keys())[:3]}, "
             f"expected but not stored {sorted(loaded.keys() - stored.keys())[:3]}")
    for name, value in stored.items():
        if not torch.equal(loaded[name].float(), value.float()):
            fail(f"{folder}: {name} was loaded with other values")
    if not any(value.any() for name, value in stored.items() if "lora_B" in name):
        fail(f"{folder}: every lora_B is zero: this adapter changes nothing")
    return model


def check_family(program, family, tied, folder, **extra):
    name = f"{family}{', tied' if tied else ''}"
    torch.manual_seed(1)
    draw = random.Random(1)
    rows = [[draw.randrange(200) for _ in range(n)] for n in (5, 33, 70)]
    karat = Karat(program, rows, folder)
    config = AutoConfig.for_model(
        family, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=200, max_position_embeddings=128, initializer_range=0.1,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=tied, **extra)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias") or "norm" in parameter_name:  # values that show if they are left out
            mean = 0.0 if parameter_name.endswith("bias") else 1.0
            torch.nn.init.normal_(parameter, mean=mean, std=0.3)
    base = folder / "base"
    model.save_pretrained(base)
    karat.agree(f"{name}: a model of transformers", karat.score(base), karat.by_torch(model))
    half = folder / "bf16"
    load(base).to(torch.bfloat16).save_pretrained(half)
    karat.agree(f"{name}: its bf16 copy, widened", karat.score(half), karat.by_torch(load(half)))

    whole = ["model.norm"] if tied else ["model.norm", "lm_head", "embed_tokens"]
    for variant, settings in {
        "LoRA": {"use_rslora": True, "target_modules": TARGETS},
        "LoRA with patterns": {
            "target_modules": r".*\.(q|v|gate|down)_proj", "exclude_modules": ["layers.0.mlp.gate_proj"],
            "rank_pattern": {"down_proj": 2}, "alpha_pattern": {r"layers\.1\..*": 7}},
        "DoRA and whole modules": {"use_dora": True, "target_modules": "all-linear", "modules_to_save": whole},
    }.items():
        peft = get_peft_model(load(base), LoraConfig(r=4, lora_alpha=3, init_lora_weights=False, **settings))
        for parameter_name, parameter in peft.named_parameters():
            if "modules_to_save" in parameter_name or "magnitude" in parameter_name:
                parameter.data *= 1 + 0.2 * torch.randn_like(parameter)
        theirs = folder / variant
        peft.save_pretrained(theirs)
        karat.agree(f"{name}: {variant} of peft", karat.score(base, theirs), karat.by_torch(peft))

    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps({"input_ids": r, "labels": [-100] * 3 + r[3:]}) + "\n" for r in rows))
    for variant, method, settings in [
        ("full checkpoint", "full", []),
        ("LoRA", "lora", []),
        ("DoRA and whole modules", "lora",
         ["use_dora=true", f"modules_to_save={json.dumps(whole)}", "rank_pattern.down_proj=3", "target_modules=all-linear"]),
    ]:
        out = folder / f"our {variant}"
        settings = ["learning_rate=1e-2", "epochs=2", "batch_size=1", "accumulation=1", *settings]
        karat.run("train", "--model", base, "--method", method, "--data", data, "--ids", "--out", out,
                  *(part for setting in settings for part in ("--set", setting)))
        last = max(out.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
        if method == "full":
            karat.agree(f"{name}: our {variant}", karat.score(last), karat.by_torch(load(last)))
        else:
            ours, loaded = karat.score(base, last), load_adapter(base, last)
            karat.agree(f"{name}: our {variant}", ours, karat.by_torch(loaded))
            karat.agree(f"{name}: our {variant} merged by peft", ours, karat.by_torch(loaded.merge_and_unload()))


def check_folder(args, folder):
    base = load(args.model)
    if args.input:
        tokenizer = None
        rows = []
        for number, line in enumerate(Path(args.input).read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if "ids" not in row and "text" not in row:
                fail(f"{args.input}:{number}: neither ids nor text")
            if "ids" not in row:
                tokenizer = tokenizer or AutoTokenizer.from_pretrained(args.model, local_files_only=True)
                row["ids"] = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
            if len(row["ids"]) < 2:
                fail(f"{args.input}:{number}: fewer than 2 ids")
            rows.append(row["ids"])
        if not rows:
            fail(f"{args.input}: no rows")
    else:
        draw = random.Random(0)
        rows = [[draw.randrange(base.config.vocab_size) for _ in range(n)] for n in (2, 17, 64, 200)]
    karat = Karat(args.karat, rows, folder)
    model = load_adapter(args.model, args.adapter) if args.adapter else base
    karat.agree(str(args.adapter or args.model), karat.score(args.model, args.adapter), karat.by_torch(model))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("karat", help="the program, e.g. target/debug/karat")
    parser.add_argument("--model", help="a model folder (a full checkpoint)")
    parser.add_argument("--adapter", help="a PEFT adapter folder on that model")
    parser.add_argument("--input", help="JSON lines with id and ids or text")
    args = parser.parse_args()
    if (args.adapter or args.input) and not args.model:
        fail("--adapter and --input need --model")
    with tempfile.TemporaryDirectory() as name:
        if args.model:
            check_folder(args, Path(name))
        else:
            for number, (family, tied, extra) in enumerate([
                ("qwen3", True, {}),
                ("qwen3", False, {"attention_bias": True}),
                ("qwen2", True, {}),
                ("llama", False, {}),
                ("llama", True, {"attention_bias": True, "mlp_bias": True}),
            ]):
                folder = Path(name) / str(number)
                folder.mkdir()
                check_family(args.karat, family, tied, folder, **extra)
    print("all agree")


if __name__ == "__main__":
    main()
