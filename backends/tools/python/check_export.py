"""Holds an export of Karat's against onnx, ONNX Runtime and onnxruntime-genai. Needs no torch.

    check_export.py FOLDER IDS.json [NAME=ADAPTER.onnx_adapter ...]

IDS.json is a list of token ids. Prints one JSON object: what the checker said, the log-probability of every id given its
prefix from onnxruntime, and the greedy continuations of onnxruntime-genai, without and with each adapter. Nothing is read
from Karat but the folder. A bf16 model is checked but not run: the CPU has no kernels for it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

NEW_TOKENS = 16


def check(folder):
    """onnx.checker on the path, external data included, with shape inference of what ONNX defines."""
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    inputs = {i.name for i in model.graph.input} - {t.name for t in model.graph.initializer}
    external = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    ranges = sorted({(int(e["offset"]), int(e["length"])) for t in external
                     for e in [{x.key: x.value for x in t.external_data}]})
    overlapping = any(a + n > b for (a, n), (b, _) in zip(ranges, ranges[1:]))
    return {
        "opsets": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "ir_version": model.ir_version,
        "required_inputs": sorted(inputs),
        "outputs": sorted(o.name for o in model.graph.output),
        "external_bytes": sum(n for _, n in ranges),
        "overlapping": overlapping,
    }


def log_probabilities(folder, ids):
    """By the rules of the names alone: empty past, one row."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    feeds = {
        "input_ids": np.array([ids], dtype=np.int64),
        "attention_mask": np.ones((1, len(ids)), dtype=np.int64),
    }
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    for i in session.get_inputs():
        if i.name.startswith("past_key_values."):
            feeds[i.name] = np.zeros((1, i.shape[1], 0, i.shape[3]), dtype=types[i.type])
    logits = session.run(["logits"], feeds)[0][0].astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    table = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return [float(table[i, ids[i + 1]]) for i in range(len(ids) - 1)]


def continuations(folder, ids, adapters):
    import onnxruntime_genai as genai

    model = genai.Model(str(folder))
    loaded = genai.Adapters(model) if adapters else None
    for name, path in adapters.items():
        loaded.load(path, name)

    def continued(adapter):
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=len(ids) + NEW_TOKENS, min_length=len(ids) + NEW_TOKENS, do_sample=False)
        generator = genai.Generator(model, params)
        if adapter:
            generator.set_active_adapter(loaded, adapter)
        generator.append_tokens(np.array([ids], dtype=np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        return [int(i) for i in generator.get_sequence(0)[len(ids):]]

    return {"": continued(None), **{name: continued(name) for name in adapters}}


def tokenize(folder, ids):
    """There and back. Not every pattern that Hugging Face's tokenizers know is known to genai's."""
    import onnxruntime_genai as genai

    try:
        tokenizer = genai.Tokenizer(genai.Model(str(folder)))
    except RuntimeError as error:
        return {"error": str(error)}
    text = tokenizer.decode(np.array(ids, dtype=np.int32))
    return {"text": text, "ids": [int(i) for i in tokenizer.encode(text)]}


def main():
    folder, ids = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    adapters = dict(argument.split("=", 1) for argument in sys.argv[3:])
    result = {"checked": check(folder)}
    if json.loads((folder / "karat-onnx.json").read_text())["weights"] != "bf16":
        result["logprobs"] = log_probabilities(folder, ids)
        result["continuations"] = continuations(folder, ids, adapters)
        if (folder / "tokenizer.json").exists():
            result["tokenizer"] = tokenize(folder, ids)
    assert "torch" not in sys.modules
    print(json.dumps(result))


if __name__ == "__main__":
    main()
