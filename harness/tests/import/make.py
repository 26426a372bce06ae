"""Makes the vectors beside this file with the Python package gguf 0.19.0 (numpy, regex):

    python3 -m venv V && V/bin/pip install gguf==0.19.0 numpy regex && V/bin/python harness/tests/import/make.py

blocks.json      random blocks of every element type and what gguf.quants makes of them, base64 of f32, little-endian
tiny.gguf        a llama of one layer, its rows permuted as llama.cpp's converter permutes them
tiny.json        SHA-256 of every tensor of that model as Hugging Face orders it (f32, little-endian)
tokens.json      a byte-level BPE and the ids of texts under every known pre-tokenizer, by the plain algorithm in here
"""

import base64
import hashlib
import json
import pathlib
import unicodedata

import gguf
import numpy as np
import regex

HERE = pathlib.Path(__file__).parent
rng = np.random.default_rng(20)


def b64(array):
    return base64.b64encode(array.tobytes()).decode()


# Where a block has its IEEE halves: random bytes there could be infinite.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "F16": [0],
}


def blocks():
    rows = []
    for name in ["F32", "F16", "BF16", *[n for n in HALVES if n != "F16"]]:
        kind = gguf.GGMLQuantizationType[name]
        length, size = gguf.GGML_QUANT_SIZES[kind]
        count = max(3, 16 // length)
        raw = rng.integers(0, 256, (count, size), dtype=np.uint8)
        if name == "F32":
            raw = rng.standard_normal(count).astype("<f4").view(np.uint8).reshape(count, size)
        if name == "BF16":
            raw = (rng.standard_normal(count).astype("<f4").view("<u4") >> 16).astype("<u2").view(np.uint8)
            raw = raw.reshape(count, size)
        for at in HALVES.get(name, []):
            half = (rng.standard_normal(count) * 0.1).astype("<f2")
            half[0] = np.float16(-6e-8)  # a subnormal
            raw[:, at:at + 2] = half.view(np.uint8).reshape(count, 2)
        values = gguf.quants.dequantize(raw, kind).astype("<f4").reshape(-1)
        assert values.size == count * length and np.isfinite(values).all()
        rows.append({"type": name, "bytes": b64(raw), "values": b64(values)})
    (HERE / "blocks.json").write_text(json.dumps(rows, indent=0) + "\n")


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "qwen2": [LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")],
    "llama-bpe": [LLAMA3],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "The capital of France is Paris.",
    "It's 0.125 mg\n\n  twice daily; café naïve I'LL they'Ve",
    "cafe\u0301 decomposed, \u212b and \ufb01 stay or not",
    "二甲双胍（metformin）：每次500毫克，每日2次。",
    "12345678 1,234.5 ½ ² Ⅷ ١٢٣",
    "   leading, trailing   \t tabs\t\tand  spaces  ",
    "line\r\nline\n \n\n  next\r\r\nend\n",
    "😀👨‍👩‍👧‍👦 ℃ ≥ α-葡萄糖苷酶 ꙮ ​zero-width",
    "x=a[i]+=1; // $100 ~50% <b>|</b> ^_^ C++ `code` !!!???",
    "<|im_start|>user\nHi 3 <|im_end|>\n<|im_start|>assistant\n",
    "نص عربي ١٢٣، हिन्दी परीक्षण, Ελληνικά, русский, 한국어 텍스트, 日本語テスト",
    "don't DON'T 'tis rock'n'roll's we're",
    "",
    " ",
]


def byte_alphabet():
    """GPT-2's: printable bytes stand for themselves, the others for characters from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in plain}
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + len(table) - len(plain))
    return table


BYTES = byte_alphabet()


def spell(text):
    return [BYTES[b] for b in text.encode()]


def merge_all(symbols, pair):
    out, i = [], 0
    while i < len(symbols):
        if i + 1 < len(symbols) and (symbols[i], symbols[i + 1]) == pair:
            out.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return out


def learn(count):
    """Merges over whole texts, across words: any difference in how text is cut then changes ids."""
    words = [spell(p) for t in TEXTS for p in regex.split("|".join(map(regex.escape, SPECIAL)), t)]
    merges = []
    while len(merges) < count:
        pairs = {}
        for word in words:
            for pair in zip(word, word[1:]):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = max(sorted(pairs), key=pairs.get)
        merges.append(best)
        words = [merge_all(w, best) for w in words]
    return merges


def encode(text, pre, vocabulary, ranks):
    if pre == "qwen2":
        parts = regex.split("(" + "|".join(map(regex.escape, SPECIAL)) + ")", text)
        parts = [p if p in SPECIAL else unicodedata.normalize("NFC", p) for p in parts]
    else:
        parts = regex.split("(" + "|".join(map(regex.escape, SPECIAL)) + ")", text)
    ids = []
    for part in parts:
        if part in SPECIAL:
            ids.append(vocabulary[part])
            continue
        pieces = [part] if part else []
        for expression in PRE[pre]:
            cut = []
            for piece in pieces:
                at = 0
                for match in regex.finditer(expression, piece):
                    cut += [piece[at:match.start()], match.group()]
                    at = match.end()
                cut.append(piece[at:])
            pieces = [c for c in cut if c]
        for piece in pieces:
            symbols = spell(piece)
            if pre == "llama-bpe" and "".join(symbols) in vocabulary:
                ids.append(vocabulary["".join(symbols)])
                continue
            while True:
                pairs = [p for p in zip(symbols, symbols[1:]) if p in ranks]
                if not pairs:
                    break
                symbols = merge_all(symbols, min(pairs, key=ranks.get))
            ids += [vocabulary[s] for s in symbols]
    return ids


def tokens():
    merges = learn(260)
    vocabulary = {}
    for token in [*SPECIAL, *BYTES.values(), *["".join(m) for m in merges]]:
        vocabulary.setdefault(token, len(vocabulary))
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    ids = {pre: [encode(t, pre, vocabulary, ranks) for t in TEXTS] for pre in PRE}
    names = list(ids)
    assert all(ids[a] != ids[b] for a in names for b in names if a != b), "every pre-tokenizer must show"
    data = {"tokens": list(vocabulary), "merges": [" ".join(m) for m in merges], "texts": TEXTS, "ids": ids}
    (HERE / "tokens.json").write_text(json.dumps(data, ensure_ascii=False) + "\n")
    return data


def permute(weights, heads):
    """llama.cpp, convert_hf_to_gguf.py: what its converter does to q and k of a llama."""
    rows = weights.shape[0]
    return weights.reshape(heads, 2, rows // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def tiny(bpe):
    hidden, heads, kv_heads, wide, vocab = 32, 2, 1, 64, len(bpe["tokens"])
    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(str(HERE / "tiny.gguf"), "llama")
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(bpe["tokens"])
    writer.add_token_types([3] * len(SPECIAL) + [1] * (vocab - len(SPECIAL)))
    writer.add_token_merges(bpe["merges"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    digests = {}

    def add(name, hf, shape, kind, heads=None):
        values = (rng.standard_normal(shape) * 0.2).astype(np.float32)
        stored = values if heads is None else permute(values, heads)
        raw = gguf.quants.quantize(stored, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
        # Quantizing goes by rows, permuting moves rows: the order of the two does not matter.
        back = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind).astype("<f4")
        digests[hf] = {"shape": list(shape), "sha256": hashlib.sha256(back.tobytes()).hexdigest()}

    layer = "model.layers.0."
    add("token_embd.weight", "model.embed_tokens.weight", (vocab, hidden), kinds.Q8_0)
    add("blk.0.attn_norm.weight", layer + "input_layernorm.weight", (hidden,), kinds.F32)
    add("blk.0.attn_q.weight", layer + "self_attn.q_proj.weight", (hidden, hidden), kinds.Q4_1, heads)
    add("blk.0.attn_k.weight", layer + "self_attn.k_proj.weight", (16, hidden), kinds.Q4_0, kv_heads)
    add("blk.0.attn_v.weight", layer + "self_attn.v_proj.weight", (16, hidden), kinds.Q5_1)
    add("blk.0.attn_output.weight", layer + "self_attn.o_proj.weight", (hidden, hidden), kinds.F16)
    add("blk.0.ffn_norm.weight", layer + "post_attention_layernorm.weight", (hidden,), kinds.F32)
    add("blk.0.ffn_gate.weight", layer + "mlp.gate_proj.weight", (wide, hidden), kinds.BF16)
    add("blk.0.ffn_up.weight", layer + "mlp.up_proj.weight", (wide, hidden), kinds.Q5_0)
    add("blk.0.ffn_down.weight", layer + "mlp.down_proj.weight", (hidden, wide), kinds.Q8_0)
    add("output_norm.weight", "model.norm.weight", (hidden,), kinds.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (HERE / "tiny.json").write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")


blocks()
tiny(tokens())
