#!/usr/bin/env python3
"""Makes harness/tests/vectors/added_tokens.json: the ids that transformers gives to texts with tokens that files beside
tokenizer.json declare.

    VENV/bin/python backends/tools/python/make_token_vectors.py

Each case has the files beside tokenizer.json and, per text, the ids with special tokens added by nobody and what they
decode to without special tokens. `contradicts` names a token for which transformers takes another id than a file says:
Karat refuses such a folder.
"""

import itertools
import json
import tempfile
from pathlib import Path

import transformers
from transformers import PreTrainedTokenizerFast

VECTORS = Path(__file__).resolve().parents[3] / "harness" / "tests" / "vectors"
ROWS = 300
KNOWN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]


def byte_vocabulary():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    vocab, free = {}, 256
    for byte in range(256):
        stand_in = byte if byte in printable else free
        free += byte not in printable
        vocab[chr(stand_in)] = byte
    return vocab


def tokenizer(normalizer):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    cut = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": 256 + i, "content": t, **flags, "special": i < 3} for i, t in enumerate(KNOWN)],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "ByteLevel", **cut}, "post_processor": None, "decoder": {"type": "ByteLevel", **cut},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": byte_vocabulary(), "merges": []},
    }


def token(content, **flags):
    base = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": content, **base, **flags}


CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def cases():
    def config(**keys):
        return {"tokenizer_config.json": {**CONFIG, **keys}}

    for flags in itertools.product([False, True], repeat=5):
        named = dict(zip(["special", "normalized", "lstrip", "rstrip", "single_word"], flags))
        yield "flags " + " ".join(k for k, v in named.items() if v), config(added_tokens_decoder={"261": token("Zork", **named)})
    yield "only content", config(added_tokens_decoder={"261": {"content": "Zork"}})
    yield "two by id", config(added_tokens_decoder={"262": token("Zork"), "261": token("<b>")})
    yield "id with a gap", config(added_tokens_decoder={"270": token("Zork")})
    yield "id of another token", config(added_tokens_decoder={"258": token("Zork")})
    yield "id of a byte", config(added_tokens_decoder={"65": token("Zork")})
    yield "other id of a known token", config(added_tokens_decoder={"262": token("<think>")})
    yield "known token, other flags", config(added_tokens_decoder={"259": token("<think>", special=True, rstrip=True)})
    yield "known token not special any more", config(added_tokens_decoder={"257": token("<|im_start|>", special=False)})
    yield "a token that is a letter", config(added_tokens_decoder={"122": token("z", special=False)})
    yield "extra list", config(extra_special_tokens=["Zork", "<b>"])
    yield "extra list of known", config(extra_special_tokens=["<think>", "Zork"])
    yield "extra dict", config(extra_special_tokens={"zork_token": "Zork", "b_token": "<b>"})
    yield "additional list", config(additional_special_tokens=["Zork", "<b>"])
    yield "additional beside extra", config(additional_special_tokens=["<b>"], extra_special_tokens=["Zork"])
    yield "additional beside empty extra", config(additional_special_tokens=["<b>"], extra_special_tokens=[])
    yield "a token of one model", config(image_token="Zork")
    yield "decoder and extra", config(added_tokens_decoder={"261": token("Zork", lstrip=True)}, extra_special_tokens=["<b>", "Zork"])
    yield "split special tokens", config(split_special_tokens=True, added_tokens_decoder={"261": token("Zork")})
    yield "added_tokens.json", {**config(), "added_tokens.json": {"Zork": 261}}
    yield "added_tokens.json, two", {**config(), "added_tokens.json": {"<b>": 262, "Zork": 261}}
    yield "added_tokens.json, special", {**config(extra_special_tokens=["Zork"]), "added_tokens.json": {"Zork": 261}}
    yield "added_tokens.json, gap", {**config(), "added_tokens.json": {"Zork": 280}}
    yield "added_tokens.json beside a decoder", {**config(added_tokens_decoder={"261": token("<b>")}), "added_tokens.json": {"Zork": 262}}
    yield "added_tokens.json of a known token", {**config(), "added_tokens.json": {"<think>": 259}}
    yield "map alone", {"special_tokens_map.json": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra_special_tokens": ["Zork"]}}
    yield "map before configuration", {**config(eos_token="<|endoftext|>"), "special_tokens_map.json": {"eos_token": "<|im_end|>"}}
    yield "map beside a decoder", {**config(eos_token="<|endoftext|>", added_tokens_decoder={"261": token("Zork")}), "special_tokens_map.json": {"eos_token": "<|im_end|>"}}
    yield "map, additional", {**config(), "special_tokens_map.json": {"additional_special_tokens": ["Zork", "<b>"]}}
    yield "map, extra after configuration", {**config(extra_special_tokens=["<b>"]), "special_tokens_map.json": {"extra_special_tokens": ["Zork"]}}
    yield "map, objects", {**config(), "special_tokens_map.json": {"sep_token": {"content": "Zork", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}}}
    yield "map, extra dict", {**config(), "special_tokens_map.json": {"extra_special_tokens": {"zork_token": "Zork"}}}
    yield "a named token nobody else has", config(sep_token="Zork")
    yield "a named token as an object", config(sep_token={"__type": "AddedToken", **token("Zork", rstrip=True)})


TEXTS = ["aZorkb", "a Zork b", "Zork", " zork ZORK Zork\n", "aZork <b>  b<think>x</think><|im_end|> <|im_start|>", "zz <|endoftext|>", ""]


def measure(files, normalizer):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer(normalizer)))
        for name, value in files.items():
            (folder / name).write_text(json.dumps(value))
        loaded = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = [loaded.encode(text, add_special_tokens=False) for text in TEXTS]
    result = {"ids": ids, "skipped": [loaded.decode(i, skip_special_tokens=True) for i in ids],
              "kept": [loaded.decode(i, skip_special_tokens=False) for i in ids], "eos": loaded.eos_token_id, "pad": loaded.pad_token_id}
    said = {v["content"]: int(k) for k, v in files.get("tokenizer_config.json", {}).get("added_tokens_decoder", {}).items()}
    if "added_tokens_decoder" not in files.get("tokenizer_config.json", {}):
        said.update(files.get("added_tokens.json", {}))
    wrong = [text for text, i in said.items() if loaded.convert_tokens_to_ids(text) != i]
    if wrong:
        result["contradicts"] = wrong[0]
    return result


def main():
    normalizers = {"none": None, "lowercase": {"type": "Lowercase"}}
    made = []
    for (label, normalizer), (name, files) in itertools.product(normalizers.items(), cases()):
        made.append({"name": f"{name}, {label}", "normalizer": label, "files": files, **measure(files, normalizer)})
    vectors = {"transformers": transformers.__version__, "rows": ROWS, "texts": TEXTS,
               "tokenizers": {label: tokenizer(n) for label, n in normalizers.items()}, "cases": made}
    lines = json.dumps(vectors, ensure_ascii=False, separators=(",", ":")).replace('{"name"', '\n{"name"')
    (VECTORS / "added_tokens.json").write_text(lines + "\n", encoding="utf-8")
    print(len(made), "cases,", sum("contradicts" in c for c in made), "contradictions")


if __name__ == "__main__":
    main()
