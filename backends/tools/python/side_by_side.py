"""Trains the same model on the same items with Karat and with transformers + peft, in turn, and prints tokens per second,
peak memory and their ratios.

    python side_by_side.py MODEL --measure target/release/karat-tools [--method full|lora] [--pairs 5] [--steps 3]
                           [--length 512] [--threads 2] [--karat bf16,f32]
                           [--torch float32,bfloat16,autocast,bfloat16+compile]
                           [--recompute 0,1] [--dropout 0|0.1] [--json FILE]

Each measurement is a process of its own; one pair is one of each side, and pairs alternate, because single processes of
PyTorch differ by up to 30 % on small machines and so does what neighbours leave of the machine. Medians are printed. The
items are rows of `length` random ids, all trained on, batch 1, drawn by the same generator on both sides; the first step
of a process warms up and is not counted. A mode with +compile runs the model through torch.compile: the passes that compile
it come before the first step, change no weight, and their seconds are a column of their own. With --json the measurements are kept in FILE and those that it already holds
of the same sides count too, so that rounds can be spread over quiet minutes. AdamW as torch has it, fused; gradients clipped to norm 1.

LoRA is the recipe's: r 8, alpha 32, all seven projections. With dropout 0.1 peft's adapters are f32 (its default), with
dropout 0 they have the model's type, which is its fastest. Needs torch, transformers and peft.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path


def torch_side(a):
    """One measurement of transformers + peft, in this process; prints a JSON object."""
    import time

    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    mode, _, compiled = a.mode.partition("+")
    autocast = mode == "autocast"
    dtype = torch.bfloat16 if mode == "bfloat16" else torch.float32
    base = torch.bfloat16 if autocast and a.method == "lora" else dtype
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=base, attn_implementation="sdpa")
    if a.method == "lora":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=8, lora_alpha=32, lora_dropout=a.dropout, task_type="CAUSAL_LM",
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        )
        model = get_peft_model(model, config, autocast_adapter_dtype=a.dropout > 0 or autocast)
    if a.recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if a.method == "lora":
            model.enable_input_require_grads()
    model.config.use_cache = False
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
    state, vocab = 12345, model.config.vocab_size
    compiling = time.perf_counter()
    if compiled:
        model = torch.compile(model)
        for _ in range(2):
            ids = torch.zeros((1, a.length), dtype=torch.long)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                model(input_ids=ids, labels=ids).loss.backward()
            optimizer.zero_grad(set_to_none=True)
    compiling = time.perf_counter() - compiling
    seconds, losses = [], []
    for step in range(a.steps + 1):
        if step == 1:
            warm = time.process_time()
        ids = []
        for _ in range(a.length):
            state = (state * 1664525 + 1013904223) % 2**32
            ids.append((state >> 8) % vocab)
        ids = torch.tensor([ids])
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    processor = time.process_time() - warm
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"tokens_per_second": a.length / statistics.median(seconds[1:]), "peak": peak, "losses": losses,
                      "tokens_per_processor_second": a.length * a.steps / processor,
                      "seconds_to_compile": compiling if compiled else 0.0}))


def run(command):
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--measure", default="target/release/karat-tools")
    p.add_argument("--method", default="full", choices=["full", "lora"])
    p.add_argument("--pairs", type=int, default=5)
    p.add_argument("--steps", type=int, default=3)
    p.add_argument("--length", type=int, default=512)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--dropout", type=float, default=0.0)
    p.add_argument("--karat", default="bf16,f32")
    p.add_argument("--torch", default="float32,bfloat16,autocast")
    p.add_argument("--recompute", default="0")
    p.add_argument("--json")
    p.add_argument("--mode", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.mode:
        a.recompute = a.recompute == "1"
        return torch_side(a)
    sides = {}
    for recompute in a.recompute.split(","):
        for dtype in filter(None, a.karat.split(",")):
            sides[f"karat {dtype}{' recompute' * int(recompute)}"] = [
                a.measure, "train", f"model={a.model}", f"method={a.method}", f"dtype={dtype}", f"recompute={recompute}",
                f"length={a.length}", f"steps={a.steps}", f"dropout={a.dropout}", f"threads={a.threads}",
            ]
        for mode in filter(None, a.torch.split(",")):
            sides[f"torch {mode}{' recompute' * int(recompute)}"] = [
                sys.executable, __file__, a.model, "--mode", mode, "--method", a.method, "--length", str(a.length),
                "--steps", str(a.steps), "--threads", str(a.threads), "--dropout", str(a.dropout), "--recompute",
                recompute,
            ]
    kept = json.loads(Path(a.json).read_text()) if a.json and Path(a.json).exists() else {}
    results = {name: kept.get(name, []) for name in sides}
    for pair in range(a.pairs):
        for name, command in sides.items():
            results[name].append(run(command))
            got = results[name][-1]
            print(f"{pair + 1}: {name}: {got['tokens_per_second']:.0f} tokens/s, "
                  f"{got['tokens_per_processor_second']:.0f} a processor second", file=sys.stderr, flush=True)
    if a.json:
        Path(a.json).write_text(json.dumps(results, indent=1) + "\n")
    summary = {}
    for name, got in results.items():
        if not got:
            sys.exit("no rounds: --pairs 1 or more, or a --json FILE that holds some")
        speeds = [g["tokens_per_second"] for g in got]
        summary[name] = {
            "tokens_per_second": statistics.median(speeds), "low": min(speeds), "high": max(speeds),
            "per_processor_second": statistics.median(g["tokens_per_processor_second"] for g in got),
            "peak_gb": statistics.median(g["peak"] for g in got) / 1e9, "losses": got[0]["losses"],
            "seconds_to_compile": statistics.median(g.get("seconds_to_compile", 0.0) for g in got),
        }
    ours = [n for n in summary if n.startswith("karat")]
    theirs = [n for n in summary if n.startswith("torch")]
    print(f"{Path(a.model).name}, {a.method}, length {a.length}, {a.threads} threads, dropout {a.dropout}, "
          f"{min(len(got) for got in results.values())} rounds")
    print(f"{'':28} tokens/s   (low to high)   a CPU second   peak GB   last loss   s to compile")
    for name, s in summary.items():
        print(f"{name:28} {s['tokens_per_second']:8.0f}   ({s['low']:.0f} to {s['high']:.0f})"
              f"{s['per_processor_second']:12.0f}{s['peak_gb']:14.2f}   {s['losses'][-1]:.4f}"
              f"{s['seconds_to_compile']:15.0f}")
    for mine in ours:
        for other in theirs:
            ratios = [m["tokens_per_second"] / t["tokens_per_second"] for m, t in zip(results[mine], results[other])]
            processor = [
                m["tokens_per_processor_second"] / t["tokens_per_processor_second"]
                for m, t in zip(results[mine], results[other])
            ]
            memory = summary[mine]["peak_gb"] / summary[other]["peak_gb"]
            print(f"{mine} / {other}: {statistics.median(ratios):.2f} times the speed "
                  f"({statistics.median(processor):.2f} by processor time), {memory:.0%} of the memory")


if __name__ == "__main__":
    main()
