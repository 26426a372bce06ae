#!/usr/bin/env python3
"""Loads what Karat wrote with the real transformers and peft, and compares numbers with `karat score`.

    python3 -m venv VENV && VENV/bin/pip install torch transformers peft safetensors

    # print log-probabilities: one JSON line per input line
    check_with_transformers.py --model DIR [--adapter DIR] --input FILE.jsonl

    # compare with what Karat said about the same input; exit 1 if any log-probability differs by more than 1e-4
    karat score --model DIR [--adapter DIR] --input FILE.jsonl > scores.jsonl
    check_with_transformers.py --model DIR [--adapter DIR] --input FILE.jsonl --compare scores.jsonl

    # without --input, the rows are made up: the same ids on every machine, below the model's vocabulary
    check_with_transformers.py --model DIR --make-input FILE.jsonl

Input lines are those of `karat score`: {"id", "ids": [..]} or {"id", "text"}. Output lines are {"id", "ids", "token_logprobs",
"sum"}: `token_logprobs[k]` is log p(ids[k+1] | ids[..=k]) in nats, float32 on the CPU. A folder that the packages load only in
part (missing or unexpected weights, an adapter of zeros or one that changes nothing) is an error.

Exit codes: 0 agree, 1 differ, 2 the folder or the input cannot be used.
"""

import argparse
import json
import math
import random
import sys
from pathlib import Path


def fail(message, code=2):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def read_rows(path):
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row["id"]
        except (ValueError, KeyError, TypeError) as error:
            fail(f"{path}:{number}: not a row with an id: {error!r}")
        rows.append(row)
    if not rows:
        fail(f"{path}: no rows")
    return rows


def load(model_dir, adapter_dir):
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, output_loading_info=True, local_files_only=True)
    for kind in ["missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"]:
        # A tied head has no tensor of its own: transformers does not count it as missing.
        if info.get(kind):
            fail(f"{model_dir}: {kind}: {sorted(map(str, info[kind]))[:5]}")
    if adapter_dir:
        from peft import PeftModel
        from safetensors import safe_open

        base = {name for name, _ in model.named_modules()}
        with safe_open(str(Path(adapter_dir) / "adapter_model.safetensors"), "pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}
        model = PeftModel.from_pretrained(model, adapter_dir, local_files_only=True)
        loaded = {name.replace(".default.weight", ".weight"): value for name, value in model.state_dict().items() if "lora_" in name}
        if stored.keys() != loaded.keys():
            only_stored, only_loaded = sorted(stored.keys() - loaded.keys())[:3], sorted(loaded.keys() - stored.keys())[:3]
            fail(f"{adapter_dir}: stored but not loaded {only_stored}, expected but not stored {only_loaded} ({len(base)} modules)")
        for name, value in stored.items():
            if not torch.equal(loaded[name].float(), value.float()):
                fail(f"{adapter_dir}: {name} was loaded with other values")
        if not any(value.any() for name, value in stored.items() if "lora_B" in name):
            fail(f"{adapter_dir}: every lora_B is zero: this adapter changes nothing")
    return model.eval()


def score(model, ids):
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float()
    logprobs = torch.log_softmax(logits[:-1], dim=-1)
    return logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].tolist()


def ids_of(row, tokenizer):
    if "ids" in row:
        return row["ids"]
    if "text" not in row:
        fail(f"row {row['id']!r} has neither ids nor text")
    return tokenizer()(row["text"], add_special_tokens=False)["input_ids"]


def compare(ours, theirs, tolerance):
    """Prints the worst difference of each row that is off; returns whether all agree."""
    agree, worst, tokens = True, 0.0, 0
    karat = {row["id"]: row for row in ours}
    if len(karat) != len(ours):
        fail("the scores have an id twice", 1)
    for row in theirs:
        got = karat.pop(row["id"], None)
        if got is None:
            print(f"{row['id']}: not in the scores")
            agree = False
            continue
        a, b = got["token_logprobs"], row["token_logprobs"]
        if "ids" in got and got["ids"] != row["ids"]:
            print(f"{row['id']}: other ids: {got['ids'][:8]}.. against {row['ids'][:8]}..")
            agree = False
        if len(a) != len(b):
            print(f"{row['id']}: {len(a)} log-probabilities for {len(b)}")
            agree = False
            continue
        tokens += len(b)
        finite = lambda x: x is not None and math.isfinite(x)
        differences = [abs(x - y) if finite(x) and finite(y) else math.inf for x, y in zip(a, b)]
        most = max(differences, default=0.0)
        worst = max(worst, most)
        if most > tolerance:
            at = differences.index(most)
            print(f"{row['id']}: token {at + 1}: karat {a[at]}, transformers {b[at]}")
            agree = False
    for name in karat:
        print(f"{name}: scored by Karat only")
        agree = False
    verdict = "agree" if agree else "DIFFER"
    print(f"{verdict}: {len(theirs)} rows, {tokens} tokens, largest difference {worst:.3g} (tolerance {tolerance:g})")
    return agree and tokens > 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model folder (a full checkpoint)")
    parser.add_argument("--adapter", help="a PEFT adapter folder")
    parser.add_argument("--input", help="JSON lines with id and ids or text")
    parser.add_argument("--compare", metavar="FILE", help="JSON lines of `karat score` for the same input")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--make-input", metavar="FILE", help="write 4 made-up rows for this model and stop")
    args = parser.parse_args()

    if args.make_input:
        config = json.loads((Path(args.model) / "config.json").read_text(encoding="utf-8"))
        draw = random.Random(0)
        rows = [{"id": f"row-{n}", "ids": [draw.randrange(config["vocab_size"]) for _ in range(n)]} for n in [2, 17, 64, 200]]
        Path(args.make_input).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return
    if not args.input:
        fail("give --input or --make-input")

    loaded = []

    def tokenizer():
        if not loaded:
            from transformers import AutoTokenizer

            loaded.append(AutoTokenizer.from_pretrained(args.model, local_files_only=True))
        return loaded[0]

    try:
        model = load(args.model, args.adapter)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        fail(f"the packages refuse the folder: {error}")
    results = []
    for row in read_rows(args.input):
        ids = ids_of(row, tokenizer)
        if len(ids) < 2:
            fail(f"row {row['id']!r} has fewer than 2 ids")
        logprobs = score(model, ids)
        results.append({"id": row["id"], "ids": ids, "token_logprobs": logprobs, "sum": sum(logprobs)})
    if args.compare:
        sys.exit(0 if compare(read_rows(args.compare), results, args.tolerance) else 1)
    for result in results:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
