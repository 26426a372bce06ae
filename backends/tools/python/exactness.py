"""How exact a backward pass in bf16 is: Karat's and PyTorch's gradients beside those of float32.

    python exactness.py MODEL --gradients target/release/karat-tools [--length 512] [--text FILE]
                        [--method full|lora] [--torch autocast,bfloat16] [--karat bf16] [--old BINARY]

The same batch, one row of `length` ids (of a text, or drawn), through the same weights, once each. Printed: the loss and how far it is
from float32's, and the relative L2 distance of the gradients from float32's: of all together, and the median, 90th
percentile and largest over the tensors. Every implementation is measured against its own float32. `--old` is another build of the example to set beside. Needs torch and transformers; LoRA is
compared without PyTorch.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file


def by_torch(folder, ids, mode):
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if mode == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    model.config.use_cache = False
    model.train()
    ids = torch.tensor([ids])
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.item(), {name: p.grad.float() for name, p in model.named_parameters()}


def by_karat(binary, a, ids, dtype):
    with tempfile.NamedTemporaryFile("w", suffix=".ids") as text, tempfile.NamedTemporaryFile(suffix=".st") as out:
        text.write(" ".join(map(str, ids)))
        text.flush()
        command = [binary, "gradients", f"model={a.model}", f"ids={text.name}", f"dtype={dtype}", f"method={a.method}",
                   f"out={out.name}"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            sys.exit(result.stderr[-2000:])
        return float(result.stdout), load_file(out.name)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--gradients", default="target/release/karat-tools")
    p.add_argument("--old")
    p.add_argument("--length", type=int, default=512)
    p.add_argument("--text")
    p.add_argument("--method", default="full", choices=["full", "lora"])
    p.add_argument("--torch", default="autocast,bfloat16")
    p.add_argument("--karat", default="bf16")
    a = p.parse_args()
    if a.text:
        from transformers import AutoTokenizer

        ids = AutoTokenizer.from_pretrained(a.model)(Path(a.text).read_text())["input_ids"][: a.length]
    else:
        import json

        vocab, state, ids = json.loads((Path(a.model) / "config.json").read_text())["vocab_size"], 12345, []
        for _ in range(a.length):
            state = (state * 1664525 + 1013904223) % 2**32
            ids.append((state >> 8) % vocab)
    sides = []
    modes = [] if a.method == "lora" else [m for m in a.torch.split(",") if m]
    if modes:
        sides.append((("torch float32", by_torch(a.model, ids, "float32")), [(f"torch {m}", by_torch(a.model, ids, m)) for m in modes]))
    builds = [("karat", a.gradients)] + ([("old karat", a.old)] if a.old else [])
    exact = ("karat f32", by_karat(a.gradients, a, ids, "f32"))
    sides.append((exact, [(f"{name} {d}", by_karat(b, a, ids, d)) for name, b in builds for d in a.karat.split(",")]))
    print(f"{Path(a.model).name}, {a.method}, {len(ids)} tokens")
    print(f"{'':20} {'loss':>10} {'off by':>10}   gradients off by: {'all':>8} {'median':>8} {'9 in 10':>8} {'largest':>8}")
    if modes:
        sides[0][1].append(exact)
    for (name, (loss, wide)), others in sides:
        print(f"{name:20} {loss:10.6f}")
        for name, (other, narrow) in others:
            square, total, each = 0.0, 0.0, {}
            for tensor, want in wide.items():
                off = (narrow[tensor].double() - want.double()).norm().item()
                size = want.double().norm().item()
                square, total, each[tensor] = square + off**2, total + size**2, off / size
            errors = sorted(each.values())
            at = lambda part: errors[min(int(part * len(errors)), len(errors) - 1)]
            print(f"{name:20} {other:10.6f} {other - loss:+10.2e}   {'':17} {(square / total) ** 0.5:8.5f} {at(0.5):8.5f} "
                  f"{at(0.9):8.5f} {errors[-1]:8.5f}  {max(each, key=each.get)}")
            kinds = {}
            for tensor, error in each.items():
                kinds.setdefault(tensor.split(".", 3)[-1] if ".layers." in tensor else tensor, []).append(error)
            if os.environ.get("KINDS"):
                for kind, of in sorted(kinds.items()):
                    print(f"    {kind:40} {sum(e * e for e in of) ** 0.5 / len(of) ** 0.5:8.5f}")


if __name__ == "__main__":
    main()
