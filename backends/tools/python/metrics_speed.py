#!/usr/bin/env python3
"""Times the Python packages for `metrics_speed.rs`, which starts it, sends it work and times Karat on the same pairs.

    python -m venv VENV && VENV/bin/pip install jieba==0.42.1 nltk==3.10.4 rouge==1.0.1 \
        rouge-chinese==1.0.3 rouge_score==0.1.2 sacrebleu==2.6.0
    cargo run --release -p karat-tools -- metrics python=VENV/bin/python pairs=PAIRS.jsonl

Reads lines `GROUP SECONDS`; works through the pairs in order until the seconds of processor time are over and answers
`PAIRS SECONDS`. One thread, the dictionary loaded before; the garbage is collected between pairs and outside the clock (package rouge keeps its tables in a
reference cycle, 50 to 130 MB a pair).
"""
import gc
import json
import logging
import sys
import time
import warnings

import jieba
import rouge
import rouge_chinese
import sacrebleu
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF

warnings.simplefilter("ignore")
jieba.setLogLevel(logging.CRITICAL)
logging.getLogger("sacrebleu").setLevel(logging.CRITICAL)
# Package rouge recurses once a token.
sys.setrecursionlimit(1_000_000)


def words(text):
    return list(jieba.cut(text))


class Words:
    @staticmethod
    def tokenize(text):
        return words(text)


def vocabulary(reference, candidate):
    r, c = set(words(reference)), set(words(candidate))
    common = len(r & c)
    p, r = common / len(c), common / len(r)
    return p, r, 2 * p * r / (p + r) if p + r else 0.0


METHOD4 = SmoothingFunction().method4
ROUGE, ROUGE_CHINESE = rouge.Rouge(), rouge_chinese.Rouge()
GOOGLE = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Words())
ZH, CHRF2, CHRFPP = BLEU(tokenize="zh", effective_order=True), CHRF(), CHRF(word_order=2)

CALLS = {
    "jieba": lambda r, c: (words(r), words(c)),
    "rouge_jieba": lambda r, c: ROUGE.get_scores(" ".join(words(c)), " ".join(words(r))),
    "rouge_char": lambda r, c: ROUGE.get_scores(" ".join(c), " ".join(r)),
    "rouge_chinese_jieba": lambda r, c: ROUGE_CHINESE.get_scores(" ".join(words(c)), " ".join(words(r))),
    "rouge_score_jieba": lambda r, c: GOOGLE.score(r, c),
    "nltk_bleu_jieba.m4": lambda r, c: sentence_bleu([words(r)], words(c), smoothing_function=METHOD4),
    "vocab": vocabulary,
    "sacrebleu_eff.zh": lambda r, c: ZH.sentence_score(c, [r]).score,
    "chrf": lambda r, c: CHRF2.sentence_score(c, [r]).score,
    "chrfpp": lambda r, c: CHRFPP.sentence_score(c, [r]).score,
}


def main():
    with open(sys.argv[1], encoding="utf-8", newline="\n") as file:
        pairs = [json.loads(line) for line in file.read().split("\n") if line]
    for call in CALLS.values():
        call("预热一下", "预热")
    print("ready", flush=True)
    for line in sys.stdin:
        group, budget = line.split()
        call, spent, done = CALLS[group], 0.0, 0
        for pair in pairs:
            start = time.thread_time()
            call(pair["reference"], pair["candidate"])
            spent += time.thread_time() - start
            done += 1
            if group.startswith("rouge"):
                gc.collect()
            if spent > float(budget):
                break
        print(done, spent, flush=True)


main()
