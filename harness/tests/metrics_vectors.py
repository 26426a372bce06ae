#!/usr/bin/env python3
"""Makes metrics_vectors.jsonl: the Python packages' values for sentences of our own.

    python -m venv VENV && VENV/bin/pip install jieba==0.42.1 nltk==3.10.4 rouge==1.0.1 \
        rouge-chinese==1.0.3 rouge_score==0.1.2 sacrebleu==2.6.0 regex
    VENV/bin/python harness/tests/metrics_vectors.py > harness/tests/metrics_vectors.jsonl

`--fuzz N SEED` prints N random pairs instead, for a comparison on a larger scale: write them as pairs_edge.jsonl into a folder
`conformance/metrics` of a folder that KARAT_SHARED names.
"""
import gc
import hashlib
import json
import logging
import random
import re
import sys
import warnings
from collections import Counter

import jieba
import rouge
import rouge_chinese
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF, TER

warnings.simplefilter("ignore")
jieba.setLogLevel(logging.CRITICAL)
logging.getLogger("sacrebleu").setLevel(logging.CRITICAL)
sys.setrecursionlimit(100_000)

PAIRS = [
    ("成人布洛芬每次0.4g，每日3次，饭后服用。", "布洛芬成人一次400mg，一日三次，饭后服。"),
    ("<think>先看肾功能：eGFR 28。\n低于30，禁用。</think>\n二甲双胍禁用。", "<think>eGFR 28，低于30。</think>\n二甲双胍不宜使用。"),
    ("<think>先看肾功能。</think>\n禁用。", "<think>先看肾功能，再看"),
    ("ACE inhibitors such as enalapril may cause a dry cough.", "A dry cough may be caused by enalapril, an ACE inhibitor."),
    ("Do not combine it with 1.5-2 g/day of NSAIDs (e.g., ibuprofen).", "It's combined with NSAIDs, e.g. 2,000 mg ibuprofen-like drugs."),
    ("体温≥38.5℃时——可用“对乙酰氨基酚”……", "体温超过38.5℃时，可用对乙酰氨基酚。"),
    ("华法林与维生素K拮抗。华法林与维生素K拮抗。", "华法林与维生素K拮抗。"),
    ("头痛 发热. 咳嗽 流涕. ", "咳嗽. 发热 头痛"),
    ("多饮水", "多饮水"),
    ("药", "药"),
    ("", "多休息"),
    ("多休息", ""),
    ("...", "。。。"),
    ("二〇二四年\r\n鿖字\x1c１２３ｍｇ", "2024年 鿖字 123mg a-b_c.d 1.2.3%"),
    ("血压>140 &amp; 心率<60 &quot;正常&quot;", "血压&gt;140 & 心率&lt;60 \"正常\""),
    ("你去哪里？“回家。”他说！好……吗", "他说：“回家。”你去哪里？！好......吗"),
    ("The patients' conditions generally improved; flies, dying, happily, agreed.", "Patients generally improving; fly, dies, happy, agreeing, agreement."),
]


def tokens(text, hmm=True):
    return list(jieba.cut(text, HMM=hmm))


def guarded(call):
    try:
        return call()
    except Exception as error:  # the packages raise ValueError on empty texts
        return {"error": type(error).__name__, "message": str(error)}


def prf(score):
    return {"p": score.precision, "r": score.recall, "f": score.fmeasure}


def overlap(ref, cand):
    same = sum((Counter(ref) & Counter(cand)).values())
    p = same / len(cand) if same else 0.0
    r = same / len(ref) if same else 0.0
    f1 = 2 * p * r / (p + r) if same else 0.0
    squad2 = f1 if ref and cand else float(bool(ref) == bool(cand))
    return {"num_same": same, "p": p, "r": r, "f1": f1, "f1_squad2": squad2}


def vocab(ref, cand):
    ref, cand = set(ref), set(cand)
    common = len(ref & cand)
    p = common / len(cand) if cand else 0.0
    r = common / len(ref) if ref else 0.0
    return {"p": p, "r": r, "f1": 2 * p * r / (p + r) if p + r else 0.0}


def extract(text):
    found = re.search(r"<think>(.*?)</think>", text, re.DOTALL)
    answer = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL).strip()
    return {"think": found.group(1).strip() if found else "", "answer": answer}


def distinct(items, n):
    grams = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


class JiebaTokenizer:
    def tokenize(self, text):
        return tokens(text)


def metrics(ref, cand):
    sides = {"ref": ref, "cand": cand}
    words = {side: tokens(text) for side, text in sides.items()}
    chars = {side: list(text) for side, text in sides.items()}
    segmented = {}
    for side, text in sides.items():
        for name, hmm in (("hmm", True), ("nohmm", False)):
            cut = tokens(text, hmm)
            segmented[f"{side}_{name}_n"] = len(cut)
            segmented[f"{side}_{name}_sha256"] = hashlib.sha256("\x1f".join(cut).encode()).hexdigest()
            segmented[f"{side}_{name}"] = cut
    smoothing = SmoothingFunction()
    nltk = lambda kind: {
        f"m{k}": float(sentence_bleu([kind["ref"]], kind["cand"], smoothing_function=getattr(smoothing, f"method{k}")))
        for k in (0, 1, 2, 3, 4, 5, 7)
    }
    bleu = {t: BLEU(tokenize=t).sentence_score(cand, [ref]) for t in ("zh", "13a", "char", "intl")}
    joined = lambda kind: (" ".join(kind["cand"]), " ".join(kind["ref"]))
    package = lambda module, c, r: guarded(lambda: module.Rouge().get_scores(c, r)[0])
    google = lambda stem: {
        k: prf(v)
        for k, v in rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=stem).score(ref, cand).items()
    }
    with_jieba = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=JiebaTokenizer()).score(ref, cand)
    values = {
        "jieba": segmented,
        "nltk_bleu_jieba": nltk(words),
        "nltk_bleu_char": nltk(chars),
        "sacrebleu": {
            t: {
                "score": s.score,
                "counts": list(s.counts),
                "totals": list(s.totals),
                "precisions": list(s.precisions),
                "bp": s.bp,
                "sys_len": s.sys_len,
                "ref_len": s.ref_len,
            }
            for t, s in bleu.items()
        },
        "sacrebleu_eff": {t: BLEU(tokenize=t, effective_order=True).sentence_score(cand, [ref]).score for t in bleu},
        "chrf": CHRF().sentence_score(cand, [ref]).score,
        "chrfpp": CHRF(word_order=2).sentence_score(cand, [ref]).score,
        "ter": TER().sentence_score(cand, [ref]).score,
        "ter_asian_normalized": TER(normalized=True, asian_support=True).sentence_score(cand, [ref]).score,
        "rouge_raw": package(rouge, cand, ref),
        "rouge_jieba": package(rouge, *joined(words)),
        "rouge_char": package(rouge, *joined(chars)),
        "rouge_chinese_jieba": package(rouge_chinese, *joined(words)),
        "rouge_score": {"stem_false": google(False), "stem_true": google(True)},
        "rouge_score_jieba": {k: prf(v) for k, v in with_jieba.items()},
        "vocab": vocab(words["ref"], words["cand"]),
        "vocab_nohmm": vocab(tokens(ref, False), tokens(cand, False)),
        "extract": {side: extract(text) for side, text in sides.items()},
        "exact_match": {
            "raw": int(ref == cand),
            "stripped": int(ref.strip() == cand.strip()),
            "answer": int(extract(ref)["answer"] == extract(cand)["answer"]),
        },
        "token_f1_jieba": overlap(words["ref"], words["cand"]),
        "token_f1_char": overlap(chars["ref"], chars["cand"]),
        "distinct": {
            "jieba_1": distinct(words["cand"], 1),
            "jieba_2": distinct(words["cand"], 2),
            "char_1": distinct(chars["cand"], 1),
            "char_2": distinct(chars["cand"], 2),
        },
        "length_ratio": {
            "jieba": len(words["cand"]) / len(words["ref"]) if words["ref"] else None,
            "char": len(cand) / len(ref) if ref else None,
        },
    }
    gc.collect()  # package rouge leaves its tables in reference cycles
    return values


def fuzz(count, seed):
    """Random pairs: pieces of text and single characters that the packages treat each in its own way."""
    chance = random.Random(seed)
    jieba.initialize()
    vocabulary = list(jieba.dt.FREQ)
    latin = [w for w in vocabulary if re.search("[a-zA-Z0-9]", w)]
    words = "patients treated flying agreed hopping relational happily generalizations 's it's don't e.g. U.S. a b".split()
    marks = list(" \t\n\r\x1c\x85\u3000\u2028。！？…，、；：“”‘’《》()（）.,-–—_%+#&/<>=~^|\\{}[]@'\"·℃≥≤αβμ①Ⅱ々〇鿖㐀𠀀🇨") + ["\r\n", "......", "……", "。”", "？’"]
    entities = ["&amp;", "&quot;", "&lt;", "&gt;", "<skipped>", "-\n", "\n-", "<think>", "</think>"]

    def piece():
        kind = chance.random()
        if kind < 0.35:
            return chance.choice(vocabulary)
        if kind < 0.5:
            return "".join(chr(chance.randint(0x4E00, 0x9FFF)) for _ in range(chance.randint(1, 3)))
        if kind < 0.6:
            return chance.choice(words) + chance.choice(["", " ", ", ", ". "])
        if kind < 0.7:
            return "".join(chance.choice("0123456789abcXYZ.-_%+#&,") for _ in range(chance.randint(1, 7)))
        if kind < 0.74:
            return chance.choice(latin)
        if kind < 0.78:
            return chance.choice(entities)
        if kind < 0.8:
            return chr(chance.choice([chance.randint(0x20, 0x2FF), chance.randint(0x2000, 0x2BFF), chance.randint(0x3000, 0x33FF), chance.randint(0xF900, 0xFFEF)]))
        return chance.choice(marks)

    for n in range(count):
        pieces = [piece() for _ in range(chance.randint(0, 40))]
        other = [p if chance.random() < 0.7 else piece() for p in pieces if chance.random() < 0.9]
        if chance.random() < 0.4 and len(other) > 3:
            at = chance.randint(1, len(other) - 1)
            other = other[at:] + other[:at]
        yield f"fuzz-{seed}-{n}", "".join(pieces), "".join(other)


def main():
    if sys.argv[1:2] == ["--fuzz"]:
        pairs = fuzz(int(sys.argv[2]), int(sys.argv[3]))
    else:
        pairs = ((f"own-{n:02}", ref, cand) for n, (ref, cand) in enumerate(PAIRS))
    for name, ref, cand in pairs:
        print(json.dumps({"id": name, "reference": ref, "candidate": cand, "metrics": metrics(ref, cand)}, ensure_ascii=True))


main()
