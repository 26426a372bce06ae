#!/usr/bin/env python3
"""Makes the reference vectors in harness/tests/vectors with the real Python packages.

    python3 -m venv VENV && VENV/bin/pip install torch transformers jinja2
    VENV/bin/python backends/tools/python/make_vectors.py [--reference-template FILE]

python_random.json   random.seed / shuffle / sample / getrandbits of CPython
schedules.json       learning-rate factors of transformers.optimization
templates.json       texts that transformers rendered from conversations, for Karat's shipped template, for snippets of our
                     own that exercise what templates use, and (its outputs only) for another template given by file
"""

import argparse
import hashlib
import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[2]
VECTORS = REPO / "harness" / "tests" / "vectors"
SHIPPED = REPO / "suites/medical-r1/base/chat_template.jinja"


def write(name, value):
    text = json.dumps(value, ensure_ascii=False, indent=1)
    (VECTORS / name).write_text(text + "\n", encoding="utf-8")


def digest(numbers):
    return hashlib.sha256(" ".join(map(str, numbers)).encode()).hexdigest()


def python_random():
    shuffles, samples, draws = [], [], []
    for seed in [0, 42, -1, 2**40, 7, 2**32 - 1, 2**32, -(2**63), 2**100 + 12345]:
        for n in [0, 1, 2, 3, 10, 241, 2406]:
            random.seed(seed)
            rows = list(range(n))
            random.shuffle(rows)
            shuffles.append({"seed": str(seed), "n": n, "first": rows[:20], "last": rows[-5:], "sha256": digest(rows)})
        for n, k in [(0, 0), (1, 1), (10, 3), (21, 5), (22, 5), (84, 6), (85, 6), (86, 6), (241, 50), (276, 50), (277, 50), (278, 50), (2406, 50), (100000, 50)]:
            random.seed(seed)
            samples.append({"seed": str(seed), "n": n, "k": k, "picked": random.sample(range(n), k)})
        random.seed(seed)
        draws.append({"seed": str(seed), "below": [[n, random.randrange(n)] for n in [1, 2, 3, 1000, 2**31, 2**32 - 1, 2**32, 2**33, 2**40 + 1, 2**63]]})
    splits = []
    for n in [0, 1, 2, 9, 10, 11, 241, 2406]:
        random.seed(42)
        rows = list(range(n))
        random.shuffle(rows)
        nine, eight = int(n * 0.9), int(n * 0.8)
        splits.append({"n": n, "train_9_1": nine, "train_8_1_1": eight, "validation_end_8_1_1": nine,
                       "validation_9_1": rows[nine:][:20], "test_8_1_1": rows[nine:][:20], "train_sha256": digest(rows[:nine])})
    write("python_random.json", {"python": sys.version.split()[0], "shuffles": shuffles, "samples": samples, "draws": draws, "splits": splits})


def schedules():
    import torch
    import transformers
    from transformers import TrainingArguments, get_scheduler

    cases = []
    for name, ours in [("linear", "linear"), ("cosine", "cosine"), ("constant_with_warmup", "constant")]:
        for steps, warmup in [(1, 0), (10, 0), (10, 3), (20, 0), (1082, 0.1), (7, 0.5), (5, 5), (5, 9)]:
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
            warmup_steps = TrainingArguments(output_dir="unused", warmup_steps=warmup).get_warmup_steps(steps)
            scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=steps)
            rates = []
            for _ in range(steps):
                rates.append(scheduler.get_last_lr()[0])
                optimizer.step()
                scheduler.step()
            cases.append({"schedule": ours, "steps": steps, "warmup": warmup, "peak": 1e-4, "rates": rates if steps <= 20 else rates[::50]})
    write("schedules.json", {"transformers": transformers.__version__, "every": 50, "cases": cases})


def conversations():
    system = {"role": "system", "content": "你是一个医学专家，你需要根据用户的问题，给出带有思考的回答。"}
    user = {"role": "user", "content": "高血压患者能吃布洛芬吗？"}
    think = "先看机制：NSAID 抑制前列腺素，\n钠水潴留。"
    answer = "不建议自行服用；必要时选对乙酰氨基酚。"
    return {
        "user": [user],
        "system_user": [system, user],
        "full_reasoning": [system, user, {"role": "assistant", "content": answer, "reasoning_content": think}],
        "full_in_content": [system, user, {"role": "assistant", "content": f"<think>\n{think}\n</think>\n\n{answer}"}],
        "full_in_content_tight": [user, {"role": "assistant", "content": f"<think>{think}</think> \n {answer}"}],
        "full_plain": [user, {"role": "assistant", "content": answer}],
        "empty_reasoning": [user, {"role": "assistant", "content": answer, "reasoning_content": ""}],
        "multi_turn": [system, user, {"role": "assistant", "content": answer, "reasoning_content": think},
                       {"role": "user", "content": "那剂量呢？"}],
        "multi_turn_closed": [user, {"role": "assistant", "content": f"<think>\n旧\n</think>\n\n{answer}"},
                              {"role": "user", "content": "And the dose?"},
                              {"role": "assistant", "content": "≤ 4 g/day", "reasoning_content": "\n\nnew thought\n"}],
        "quotes_html": [{"role": "user", "content": "\"a\" 'b' <b>&amp;</b> \\n {{ x }} {% y %} `c`"}],
        "spaces": [{"role": "system", "content": "  lead and trail  \n"}, {"role": "user", "content": "\n\ta\u3000\u00a0\r\n b \n\n"},
                   {"role": "assistant", "content": "\n\n  x \n", "reasoning_content": "\n y \n\n"}],
        "emoji_blank": [{"role": "user", "content": "👩‍⚕️ \u200bÅ é"}, {"role": "assistant", "content": "</think> stray"}],
    }


SNIPPETS = {
    "values": "{{ true }} {{ none }} {{ [1, 'a', none, 2.5] }} {{ {'k': false} }} {{ 1e16 }} {{ 3.0 }} {{ missing }}|",
    "tojson": "{{ data | tojson }}\n{{ data | tojson(indent=2) }}\n{{ data | tojson(sort_keys=true) }}\n{{ data | tojson(ensure_ascii=true) }}\n{{ data | tojson(separators=(',', ':')) }}",
    "reversed": "{% for m in messages[::-1] %}{{ m.role }}{{ loop.index0 }};{% endfor %}{{ messages[1:] | length }}{{ messages[-1]['content'] }}",
    "namespace": "{% set ns = namespace(last=-1, seen=[]) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{{ ns.last }}",
    "loopcontrols": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
    "generation": "{% for m in messages %}\n{% if m.role == 'assistant' %}\n{% generation %}\n{{ m.content }}\n{% endgeneration %}\n{% else %}\n  {{- m.content -}}\n{% endif %}\n{% endfor %}\nend\n",
    "generation_trim": "a \n {%- generation -%} \n x \n {%- endgeneration -%} \n b",
    "whitespace": "  {% if true %}\n   x\n  {% endif %}\n\n{# c #}\n  y\n{%- if true %} z {% endif -%}  \n w\n\n",
    "strings": "{{ '  a b  '.strip() }}|{{ 'xxaxx'.lstrip('x') }}|{{ '\\n a\\x1c'.rstrip() }}|{{ 'a,b,,c'.split(',') }}|{{ ' a  b '.split() }}|{{ 'a b c'.split(' ', 1) }}|{{ 'a b c'.rsplit(' ', 1) }}|{{ 'abc'.removeprefix('ab') }}|{{ 'abc'.removesuffix('bc') }}|{{ 'a=b=c'.partition('=') }}|{{ 'a=b=c'.rpartition('=') | list }}|{{ 'Ab'.upper() }}|{{ 'a-b'.replace('-', '+') }}|{{ 'hello world'.title() }}|{{ 'abc'.startswith(('x', 'a')) }}|{{ 'x'.join(['1', '2']) }}|{{ 'abcabc'.find('c') }}|{{ 'abcabc'.count('b') }}|{{ 'l1\\nl2'.splitlines() }}",
    "specials": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|",
    "tools_none": "{% if tools %}tools{% endif %}{{ tools is none }}{{ documents is none }}{{ tools is defined }}{{ enable_thinking is defined }}",
    "macro": "{% macro wrap(t, tag='b') %}<{{ tag }}>{{ t }}</{{ tag }}>{% endmacro %}{{ wrap('x') }}{{ wrap('y', tag='i') }}",
    "tests": "{{ 'a' is string }}{{ {} is mapping }}{{ [] is iterable }}{{ none is none }}{{ 'x' in 'xyz' }}{{ 'role' in messages[0] }}{{ messages[0].get('nope', 'dflt') }}{{ messages[0]['content'] is string }}{{ false is false }}{{ 3 is number }}",
    "dict_items": "{% for k, v in data.items() %}{{ k }}{% if k != 'b' %}={{ v }}{% endif %};{% endfor %}{% for x in data.b %}{{ x }} {% endfor %}{{ data.keys() | list }}{{ data | length }}",
    "filters": "{{ ' x ' | trim }}|{{ [1, 2, 3] | join(', ') }}|{{ 'a' | upper }}|{{ [3, 1, 2] | sort | list }}|{{ messages | map(attribute='role') | list }}|{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|{{ 'abc' | first }}|{{ [1, 2] | last }}|{{ none | default('d', true) }}|{{ undefined_name | default('u') }}|{{ 'a\\nb' | indent(2) }}",
    "ternary": "{{ 'a' if messages else 'b' }}{{ 'x' if false }}|{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 5 }}{{ 7 / 2 }}{{ 'a' ~ 1 ~ none }}{{ not true }}",
    "strftime": "{{ strftime_now('%Y') | length }}",
    "crlf": "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc",
}


def templates(reference):
    import tempfile

    import transformers
    from transformers import PreTrainedTokenizerFast
    from tokenizers import Tokenizer, models

    def tokenizer(source):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="<|im_end|>", pad_token="<|endoftext|>")
        tokenizer.chat_template = source
        return tokenizer

    cases = []
    sources = [("shipped", SHIPPED.read_text(encoding="utf-8"))]
    if reference:
        sources.append(("reference", Path(reference).read_text(encoding="utf-8")))
    for name, source in sources:
        engine = tokenizer(source)
        for key, messages in conversations().items():
            for thinking in [None, True, False]:
                for prompt in [True, False]:
                    kwargs = {} if thinking is None else {"enable_thinking": thinking}
                    text = engine.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **kwargs)
                    cases.append({"template": name, "messages": key, "enable_thinking": thinking, "add_generation_prompt": prompt, "text": text})
    data = {"b": [1, 2.5, 1e16, 1e-5, 12345678901234567890, True, None], "a": {"<é>": "\"&'\n\u0007中\U0001F600"}, "e": [], "f": {}}
    snippets = []
    for name, source in SNIPPETS.items():
        messages = conversations()["full_reasoning"]
        text = tokenizer(source).apply_chat_template(messages, tokenize=False, data=data)
        snippets.append({"name": name, "source": source, "text": text})
    write("templates.json", {"transformers": transformers.__version__, "conversations": conversations(), "data": data, "cases": cases, "snippets": snippets})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-template", help="a chat_template.jinja whose rendered outputs are to be kept as well")
    args = parser.parse_args()
    VECTORS.mkdir(exist_ok=True)
    python_random()
    schedules()
    templates(args.reference_template)


if __name__ == "__main__":
    main()
