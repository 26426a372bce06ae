"""One engine behind one JSON object a line: `worker.py transformers` or `worker.py genai`. Started by bench.py."""

import json
import sys
import time


class Transformers:
    def open(self, model, threads, dtype):
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def batches(self, rows, batch):
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        return [[rows[i] for i in order[at : at + batch]] for at in range(0, len(rows), batch)]

    def score(self, rows, batch):
        torch, total = self.torch, 0.0
        for part in self.batches(rows, batch):
            width = max(map(len, part))
            ids = torch.tensor([r + [0] * (width - len(r)) for r in part])
            mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in part])
            logits = self.model(ids, attention_mask=mask).logits[:, :-1]
            picked = torch.log_softmax(logits.float(), -1).gather(-1, ids[:, 1:, None])[..., 0]
            total += float((picked * mask[:, 1:]).double().sum())
        return {"sum": total, "tokens": sum(map(len, rows))}

    def generate(self, rows, new, batch, stop):
        torch, tokens = self.torch, 0
        for part in self.batches(rows, batch):
            width = max(map(len, part))
            ids = torch.tensor([[0] * (width - len(r)) + r for r in part])
            mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in part])
            more = {"eos_token_id": stop} if stop else {"min_new_tokens": new, "eos_token_id": None}
            made = self.model.generate(
                ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0, **more
            )[:, width:].tolist()
            for row in made:
                ends = [row.index(s) for s in stop if s in row]
                tokens += min(ends) + 1 if ends else len(row)
        return {"tokens": tokens}


class Genai:
    def open(self, model, threads, dtype):
        import numpy
        import onnxruntime_genai

        self.numpy, self.og = numpy, onnxruntime_genai
        config = onnxruntime_genai.Config(model)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self.model = onnxruntime_genai.Model(config)

    def generate(self, rows, new, batch, stop):
        tokens = 0
        for row in rows:
            params = self.og.GeneratorParams(self.model)
            length = len(row) + new
            params.set_search_options(max_length=length, min_length=0 if stop else length, do_sample=False)
            generator = self.og.Generator(self.model, params)
            generator.append_tokens(self.numpy.array([row], dtype=self.numpy.int32))
            for _ in range(new):
                generator.generate_next_token()
                tokens += 1
                if generator.is_done():
                    break
        return {"tokens": tokens}


engine = {"transformers": Transformers, "genai": Genai}[sys.argv[1]]()
for line in sys.stdin:
    task = json.loads(line)
    began = time.perf_counter()
    try:
        if "open" in task:
            engine.open(task["open"], task["threads"], task.get("dtype", "float32"))
            told = {}
        elif "score" in task:
            told = engine.score(task["score"], task["batch"])
        else:
            told = engine.generate(task["generate"], task["new"], task["batch"], task.get("stop", []))
        told["seconds"] = time.perf_counter() - began
    except Exception as error:  # told to the driver, which decides
        told = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(told), flush=True)
