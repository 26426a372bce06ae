#!/usr/bin/env python3
"""Makes harness/tests/vectors/assistant_masks.json: which tokens TRL trains on with `assistant_only_loss`.

    python3 -m venv VENV && VENV/bin/pip install transformers jinja2
    VENV/bin/python backends/tools/python/make_mask_vectors.py

TRL's `assistant_only_loss` takes the mask of transformers' `apply_chat_template(return_assistant_tokens_mask=True)`, which goes
by the template's `{% generation %}` blocks. Templates and conversations are our own; the tokenizer is the one of
suites/medical-r1/base. Needs no torch.
"""

import json
from pathlib import Path

import transformers
from transformers import AutoTokenizer

REPO = Path(__file__).resolve().parents[3]
VECTORS = REPO / "harness" / "tests" / "vectors"

TEMPLATES = {
    # Every turn alike; the end of the turn is the assistant's, the line end is not.
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    # Whitespace control, blocks on lines of their own, a macro, a namespace; texts are trimmed; a start token.
    "headers": """{{- '<|endoftext|>' }}
{%- macro turn(role, text) -%}
    {{- '<|im_start|>[' ~ role ~ ']\\n\\n' ~ text | trim }}
{%- endmacro -%}
{%- set ns = namespace(first=true) %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>[assistant]\\n\\n' }}
        {%- generation %}
            {{- message.content | trim }}
            {{- '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- turn(message.role, message.content) }}
        {{- '<|im_end|>' }}
    {%- endif %}
    {%- set ns.first = false %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>[assistant]\\n\\n' }}
{%- endif %}
""",
    # Reasoning of every turn is written, as templates for training do; the block keeps its own lines.
    "thinking": """{% for message in messages %}
{% if message.role == 'assistant' %}
{{ '<|im_start|>assistant\\n' -}}
    {% generation %}
{% if message.reasoning_content %}{{ '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}
{{ message.content }}<|im_end|>
    {%- endgeneration %}
{{ '\\n' -}}
{% else %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' -}}
{% endif %}
""",
}


def turns(*texts, system=None, think=()):
    messages = [{"role": "system", "content": system}] if system else []
    for i, text in enumerate(texts):
        message = {"role": ["user", "assistant"][i % 2], "content": text}
        if i in think:
            message["reasoning_content"] = think[i]
        messages.append(message)
    return messages


CONVERSATIONS = [
    turns("What is two and two?", "Four."),
    turns("你好", "你好！有什么可以帮您？", "阿司匹林能和布洛芬一起吃吗？", "一般不建议同时服用。", system="你是一个医学专家。"),
    turns("a", "b", "c", "d", "e", "f", system="Be brief."),
    turns(" padded ", "  answer with spaces  ", "again\n\n", "two\nlines\n"),
    turns("say assistant", "assistant", "and im_end", "im_end", "x", "<|im_start|>assistant\nnested"),
    turns("emoji 🎉?", "Yes 🎉 and 👩‍⚕️.", "more", "🎉"),
    turns("Why?", "Because.", "And then?", "Nothing.", think={1: "hm, why indeed", 3: "think again\nover two lines"}),
    turns("q", "The answer quotes: hm", "q2", "The answer quotes: hm", think={3: "The answer quotes: hm"}),
]


def main():
    tokenizer = AutoTokenizer.from_pretrained(str(REPO / "suites/medical-r1/base"))
    cases = []
    for name, template in TEMPLATES.items():
        for messages in CONVERSATIONS:
            if any("reasoning_content" in message for message in messages) and name != "thinking":
                continue
            encoded = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
            text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
            mask = encoded["assistant_masks"]
            assert len(mask) == len(encoded["input_ids"]) and any(mask), (name, messages)
            cases.append(
                {
                    "template": name,
                    "messages": messages,
                    "text": text,
                    "ids": " ".join(map(str, encoded["input_ids"])),
                    "mask": "".join(map(str, mask)),
                }
            )
    value = {"transformers": transformers.__version__, "templates": TEMPLATES, "cases": cases}
    text = json.dumps(value, ensure_ascii=False, indent=1)
    (VECTORS / "assistant_masks.json").write_text(text + "\n", encoding="utf-8")
    print(len(cases), "cases")


main()
