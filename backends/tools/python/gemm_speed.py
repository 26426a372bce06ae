"""Products of layers by shape and by what is done with them, in bf16, by Karat and by PyTorch in turn, in GFLOP/s, beside what
the registers allow.

    python gemm_speed.py --measure target/release/karat-tools [--rounds 5] [--threads 2] [--json FILE]

A process of each side a round; medians of rounds and the lowest and highest are printed. Both sides have 24 weights that take
turns, so that each comes from beyond the second cache. Modes: the product as it is (`plain`), added to what is there (`add`,
torch.addmm), with that of an adapter of rank 8 (`tail`), and rounded to bf16 (`bf16 out`). PyTorch's products leave bf16
whatever the mode; Karat's leave f32 in all but the last. Needs torch.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

SHAPES = [(512, 576, 576), (512, 576, 1536), (512, 1536, 576), (512, 1024, 3072)]
WEIGHTS, RANK = 24, 8


def torch_side(threads, seconds):
    """One round of PyTorch in this process; prints a JSON object."""
    import torch
    import torch.nn.functional as functional

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    rates = {}
    for rows, inputs, outputs in SHAPES:
        def numbers(*shape):
            return torch.randn(shape, dtype=torch.float32).to(torch.bfloat16)

        x, low = numbers(rows, inputs), numbers(rows, RANK)
        weights = [(numbers(outputs, inputs), numbers(outputs, RANK), numbers(rows, outputs)) for _ in range(WEIGHTS)]
        modes = {
            "plain": lambda w, up, y: functional.linear(x, w),
            "add": lambda w, up, y: torch.addmm(y, x, w.t()),
            "tail": lambda w, up, y: functional.linear(x, w) + functional.linear(low, up),
        }
        rates[f"{rows} x {inputs} x {outputs}"] = found = {}
        for mode, product in modes.items():
            inner = inputs + (RANK if mode == "tail" else 0)
            for layer in weights:
                product(*layer)
            each, turn = [], 0
            started = time.perf_counter()
            while time.perf_counter() - started < seconds / 4:
                before = time.perf_counter()
                for _ in range(8):
                    product(*weights[turn % WEIGHTS])
                    turn += 1
                each.append(8 * 2 * rows * inner * outputs / (time.perf_counter() - before) / 1e9)
            found[mode] = statistics.median(each)
        found["bf16 out"] = found["plain"]
    print(json.dumps({"gflops": rates}))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--measure", default="target/release/karat-tools")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seconds", type=float, default=0.6)
    p.add_argument("--json")
    p.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.torch:
        return torch_side(a.threads, a.seconds)
    same = [f"threads={a.threads}", f"seconds={a.seconds}"]
    sides = {
        "karat": [a.measure, "kernels", *same],
        "torch": [sys.executable, __file__, "--torch", "--threads", str(a.threads), "--seconds", str(a.seconds)],
    }
    results = {name: [] for name in sides}
    for _ in range(a.rounds):
        for name, command in sides.items():
            results[name].append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    if a.json:
        Path(a.json).write_text(json.dumps(results, indent=1) + "\n")
    ours = results["karat"]
    most = statistics.median(got["registers"] for got in ours)
    print(f"{a.threads} threads, {ours[0]['instructions']}, registers: {most:.0f} GFLOP/s; {a.rounds} rounds")
    print("| tokens x in x out | mode | Karat | PyTorch | ratio |\n|---|---|--:|--:|--:|")
    for shape, modes in ours[0]["gflops"].items():
        for mode in modes:
            karat, torch = ([got["gflops"][shape][mode] for got in results[name]] for name in sides)
            said = [f"{statistics.median(of):.0f} ({min(of):.0f} to {max(of):.0f})" for of in (karat, torch)]
            ratio = statistics.median(k / t for k, t in zip(karat, torch))
            print(f"| {shape} | {mode} | {said[0]} | {said[1]} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
