"""Karat, transformers and onnxruntime-genai on the same weights, in turns; medians and ratios. See README.md."""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
TOPICS = """photosynthesis, tides, inflation, volcanoes, vaccines, gravity, bread, chess, the printing press, glaciers, batteries,
rainbows, the stock market, earthquakes, antibiotics, lighthouses, honey bees, the moon, compost, electric cars, paper, sleep,
the French Revolution, coral reefs, radio""".replace("\n", " ").split(", ")
FORMS = ["What is {}? Answer in two sentences.", "Explain {} to a child.", "List five facts about {}.",
         "Why does {} matter today? Give reasons and one example."]


class Worker:
    def __init__(self, name, command):
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        stderr=subprocess.DEVNULL)

    def ask(self, **task):
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        told = json.loads(line) if line else {"error": "the worker ended"}
        if "error" in told:
            sys.exit(f"{self.name}: {told['error']}")
        return told


def rows(count, shortest, longest, vocab=40_000):
    lengths = [shortest + (longest - shortest) * i // max(count - 1, 1) for i in range(count)]
    return [[(r * 7919 + i * 104_729) % vocab for i in range(n)] for r, n in enumerate(lengths)]


def decode(worker, new, batch=1):
    """Tokens a second of a long generation less a short one: the prompt is in both."""
    prompts = rows(batch, 32, 32)
    short = worker.ask(generate=prompts, new=1, batch=batch)["seconds"]
    long = worker.ask(generate=prompts, new=new + 1, batch=batch)["seconds"]
    return batch * new / (long - short)


def table(title, results, *references):
    ours = {name: statistics.median(results[name]) for name in references if name in results}
    heads = "".join(f" {name}, times |" for name in ours)
    print(f"\n### {title}\n\n| | tokens/s, median | all |{heads}\n| :-- | --: | :-- |{' --: |' * len(ours)}")
    for name, values in results.items():
        median = statistics.median(values)
        every = ", ".join(f"{v:.1f}" for v in values)
        ratios = "".join(f" {speed / median:.2f} |" for speed in ours.values())
        print(f"| {name} | {median:.1f} | {every} |{ratios}")
    print(flush=True)


def chat_prompts(model, count):
    """Ids of chat prompts, by the tokenizers package (it comes with transformers)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(pathlib.Path(model) / "tokenizer.json"))
    texts = [form.format(topic) for topic in TOPICS for form in FORMS][:count]
    chat = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    return [tokenizer.encode(chat.format(t), add_special_tokens=False).ids for t in texts], tokenizer.token_to_id("<|im_end|>")


def main():
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("piece", choices=["decode", "score", "suite", "int4"])
    parse.add_argument("--model", required=True)
    parse.add_argument("--export", help="for onnxruntime-genai")
    parse.add_argument("--torch", help="python with torch and transformers")
    parse.add_argument("--genai", help="python with onnxruntime-genai")
    parse.add_argument("--karat", default=str(HERE.parents[2] / "target/release/karat-tools"))
    parse.add_argument("--prompts", help="JSON: {\"prompts\": [[ids]..], \"stop\": id}, instead of the model's tokenizer")
    parse.add_argument("--threads", type=int, default=2)
    parse.add_argument("--repeat", type=int, default=3)
    parse.add_argument("--new", type=int, default=48)
    parse.add_argument("--batches", type=int, nargs="*", default=[8, 32])
    parse.add_argument("--only", help="just the workers (and batch sizes) whose name holds this")
    parse.add_argument("--record", help="a JSON file that rounds are added to; the table is of all rounds in it")
    parse.add_argument("--standard", action="store_true", help="also our f32 in standard operators")
    parse.add_argument("--option", action="append", default=[], help="KEY=JSON for Karat's backend")
    args = parse.parse_args()
    options = {k: json.loads(v) for k, v in (o.split("=", 1) for o in args.option)}

    record = pathlib.Path(args.record) if args.record else None
    results = json.loads(record.read_text()) if record and record.exists() else {}

    def wanted(name):
        return not args.only or args.only in name

    def karat(name="Karat f32", dtype="f32", **more):
        worker = Worker(name, [args.karat, "onnx-worker"])
        worker.ask(open=args.model, threads=args.threads, dtype=dtype, options={**options, **more})
        return worker

    def torch(dtype):
        worker = Worker(f"transformers {dtype}", [args.torch, str(HERE / "onnx_worker.py"), "transformers"])
        worker.ask(open=args.model, threads=args.threads, dtype=dtype)
        return worker

    def genai():
        worker = Worker("onnxruntime-genai f32", [args.genai, str(HERE / "onnx_worker.py"), "genai"])
        worker.ask(open=args.export, threads=args.threads)
        return worker

    # A worker is opened if any of its names may be wanted: those of a suite have their batch size at the end.
    starts = [("Karat f32", karat)]
    if args.piece != "int4":
        starts.append(("Karat bf16", lambda: karat("Karat bf16", dtype="bf16")))
    if args.standard:
        starts.append(("Karat f32, standard operators", lambda: karat("Karat f32, standard operators", operators="standard")))
    if args.piece in ("int4", "score"):
        few = "int4" if args.piece == "int4" else "int8"
        starts.append((f"Karat {few}", lambda: karat(f"Karat {few}", weights=few)))
    if args.torch and args.piece != "int4":
        starts += [(f"transformers {dtype}", lambda dtype=dtype: torch(dtype)) for dtype in ("float32", "bfloat16")]
    if args.genai and args.export and args.piece == "decode":
        starts.append(("onnxruntime-genai f32", genai))
    workers = [start() for name, start in starts if wanted(name) or args.only.startswith(name)]

    def note(name, value):
        results.setdefault(name, []).append(value)
        if record:
            record.write_text(json.dumps(results, indent=1) + "\n")

    if args.piece in ("decode", "int4"):
        for turn in range(args.repeat + 1):
            for worker in workers:
                speed = decode(worker, args.new)
                # The first turn warms caches and allocators.
                if turn > 0:
                    note(worker.name, speed)
        references = ["Karat int4"] if args.piece == "int4" else ["Karat f32", "Karat bf16"]
        table(f"decode at batch 1, {args.new} tokens after 32", results, *references)
    elif args.piece == "score":
        asked = rows(24, 48, 256)
        count = sum(map(len, asked))
        for turn in range(args.repeat + 1):
            for worker in workers:
                batches = [0] if worker.name.startswith("Karat") else [1, 4]
                for batch in batches:
                    told = worker.ask(score=asked, **({"batch": batch} if batch else {}))
                    if turn > 0:
                        note(worker.name + (f", batch {batch}" if batch else ""), count / told["seconds"])
        table(f"scoring 24 rows of 48 to 256 tokens, {count} in all", results, "Karat f32", "Karat bf16")
    else:
        if args.prompts:
            given = json.loads(pathlib.Path(args.prompts).read_text())
            prompts, stop = given["prompts"], given["stop"]
        else:
            prompts, stop = chat_prompts(args.model, 100)
        references = [p + r for p, r in zip(prompts, rows(len(prompts), 64, 256))]
        # One by one takes long: every tenth item, and rates instead of times.
        few = prompts[::10]
        for turn in range(args.repeat):
            for worker in workers:
                plans = [(prompts, {})] if worker.name.startswith("Karat") else (
                    [(few, {"batch": 1})] + [(prompts, {"batch": b}) for b in args.batches])
                for items, how in plans:
                    name = worker.name + (f", batch {how['batch']}" if how else "")
                    if not wanted(name):
                        continue
                    made = worker.ask(generate=items, new=256, stop=[stop], **how)
                    texts = [references[prompts.index(p)] for p in items]
                    scored = worker.ask(score=texts, **({"batch": min(how["batch"], 4)} if how else {}))
                    rates = [made["tokens"] / made["seconds"], scored["tokens"] / scored["seconds"]]
                    print(f"{name}: {rates[0]:.0f} new, {rates[1]:.0f} scored tokens/s", flush=True)
                    note(name, rates + [made["tokens"] / len(items)])
        # An item has as many new tokens as our own run made on average, whoever runs it.
        news = [new for _, _, new in results.get("Karat f32", [])]
        if news:
            new, scored = news[0], sum(map(len, references)) / len(references)
            print(f"{new:.0f} new and {scored:.0f} scored tokens an item")
            whole = {n: [new / (new / r[0] + scored / r[1]) for r in rates] for n, rates in results.items()}
            table("a whole evaluation: new tokens a second, scoring included", whole, "Karat f32", "Karat bf16")


main()
