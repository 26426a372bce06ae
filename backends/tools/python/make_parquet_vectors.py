#!/usr/bin/env python3
"""Makes the small Parquet files in harness/tests/vectors/parquet as pyarrow writes them.

    python3 -m venv VENV && VENV/bin/pip install pyarrow
    VENV/bin/python backends/tools/python/make_parquet_vectors.py

chats.parquet     `messages` as a list of structs, Zstandard, two row groups
columns.parquet   `Question`, `think`, `answer` with nulls and a struct, dictionary-encoded, Snappy
choices.parquet   `options` as a list of texts, data pages of version 2, gzip
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).resolve().parents[3] / "harness" / "tests" / "vectors" / "parquet"


def chats():
    turn = lambda role, content, think=None: {"role": role, "content": content, "reasoning_content": think}
    rows = [
        [turn("system", "Be brief."), turn("user", f"What is {n} and {n}?"), turn("assistant", f"{2 * n}.", f"twice {n}")]
        for n in range(6)
    ]
    rows[4] += [turn("user", "你确定吗？"), turn("assistant", "确定。")]
    fields = [("role", pa.string()), ("content", pa.string()), ("reasoning_content", pa.string())]
    table = pa.table(
        {"messages": pa.array(rows, pa.list_(pa.struct(fields))), "id": pa.array([f"c{n}" for n in range(6)])}
    )
    pq.write_table(table, OUT / "chats.parquet", compression="zstd", row_group_size=4)


def columns():
    table = pa.table(
        {
            "id": pa.array(range(8), pa.int64()),
            "Question": [f"Question {n}?" for n in range(8)],
            "think": ["the same thought"] * 6 + [None, ""],
            "answer": [f"Answer {n}." if n != 3 else None for n in range(8)],
            "metrics": [{"decision": "yes" if n % 2 else "no", "share": n / 8} for n in range(8)],
        }
    )
    pq.write_table(table, OUT / "columns.parquet", compression="snappy", use_dictionary=True)


def choices():
    table = pa.table(
        {
            "question": ["Which is even?", "Which is odd?"],
            "options": [["one", "two", "three"], ["four", "five", "six"]],
            "answer": ["B", "five"],
        }
    )
    pq.write_table(table, OUT / "choices.parquet", compression="gzip", data_page_version="2.0")


OUT.mkdir(exist_ok=True)
for make in (chats, columns, choices):
    make()
print({path.name: path.stat().st_size for path in sorted(OUT.iterdir())})
