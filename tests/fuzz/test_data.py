"""Files of examples, and the chat template that is laid over them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from hypothesis import strategies as st

from .kind import Kind, cases_of
from .nasty import BREAKAGES, NASTY, Spoil, broken, spoiled, spoils

CPU = ("--device", "cpu")
PROBE = ("probe", "start", "sft", "--num-samples", "4", *CPU, "-o", "OUT", "--data")
CHAT = [
    {"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": f"{n}"}]} for n in range(6)
]
ROWS = [{"question": f"How many are {n} and 2?", "answer": f"#### {n + 2}"} for n in range(6)]
CELLS = {"null": None, "NaN": float("nan"), "ten million": 10**7, "[]": [], "a list": [1, None], "bytes": b"\xff\xfe",
         "a mapping": {"a": {"b": None}}, "control characters": "\x1b[31m\x07\x00", "100,000 letters": "a " * 50_000,
         "no text": "", "true": True}  # fmt: skip
TEMPLATES = {
    "no end": "{% for m in messages %}", "a loop without end": "{% for i in range(10**9) %}x{% endfor %}",
    "loops in loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}"
                      "{% endfor %}{% endfor %}",
    "a wide format": "{{ '%999999999d' % 3 }}", "a wide text": "{{ 'x' * 10**10 }}", "itself": "{{ self }}",
    "the inside": "{{ ''.__class__.__mro__ }}", "a division": "{{ 1 // 0 }}",
    "a missing key": "{{ messages[99].content }}",
    "a method": "{{ messages.pop() }}", "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a power": "{{ 10 ** 10 ** 10 }}", "an overflow": "{{ 9.9 ** 999 }}", "a type": "{{ 'a' + 3 }}", "nothing": "",
    "raises": "{{ raise_exception('\x1b[31mno') }}", "an attribute": "{{ messages.x.y.z }}",
    "an include": "{% include 'x' %}",
}  # fmt: skip


FAILED = tuple((0, Spoil("template", (), what)) for what in ("recursion", "loops in loops"))


def lines(file: Path) -> Any:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write_lines(file: Path, whole: Any, spoil: Spoil) -> None:
    if spoil.how == "file":
        file.write_bytes(broken(file.read_bytes(), spoil.what))
        return
    place = int(spoil.where[0]) if spoil.where else 0
    texts = [json.dumps(entry).encode() for entry in whole]
    texts[place] = spoiled(whole[place], Spoil(spoil.how, spoil.where[1:], spoil.what))
    file.write_bytes(b"\n".join(texts) + b"\n")


def write_json(file: Path, whole: Any, spoil: Spoil) -> None:
    file.write_bytes(spoiled(whole, spoil))


def cells(frame: pd.DataFrame) -> st.SearchStrategy[Spoil]:
    place = st.tuples(st.sampled_from(list(frame)), st.sampled_from((0, "all")))
    one = st.builds(Spoil, st.just("set"), place, st.sampled_from(list(CELLS)))
    return st.one_of(one, one, st.builds(Spoil, st.just("file"), st.just(()), st.sampled_from(BREAKAGES)))


def write_parquet(file: Path, frame: pd.DataFrame, spoil: Spoil) -> None:
    if spoil.how == "file":
        file.write_bytes(broken(file.read_bytes(), spoil.what))
        return
    column, row = spoil.where
    values = [CELLS[spoil.what] if row in ("all", n) else cell for n, cell in enumerate(frame[column])]
    try:
        frame.assign(**{str(column): values}).to_parquet(file, index=False)
    except (ValueError, TypeError):
        frame.assign(**{str(column): [CELLS[spoil.what]] * len(frame)}).to_parquet(file, index=False)


def templates(document: Any) -> st.SearchStrategy[Spoil]:
    return st.builds(Spoil, st.just("template"), st.just(()), st.sampled_from(list(TEMPLATES)))


def write_template(file: Path, whole: Any, spoil: Spoil) -> None:
    file.write_text(TEMPLATES[spoil.what], encoding="utf-8")


def another_text(spoil: Spoil) -> bool:
    """Another whole text, or rows left out or told twice: other numbers."""
    whole = spoil.what in NASTY and isinstance(NASTY[spoil.what], str) and NASTY[spoil.what].startswith('"')
    return whole or spoil.how in ("drop", "repeat", "set")


def kind_of(name: str, file: str, rows: Any, cases: int, **more: Any) -> Kind:
    return Kind(
        f"data: {name}", file, ((*PROBE, file),), ("start", "sft", "sums.jsonl"), cases, meant=another_text,
        make=lambda path: _lay(path, rows), **more,
    )  # fmt: skip


def _lay(file: Path, rows: Any) -> None:
    if file.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(file, index=False)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows), encoding="utf-8")
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_chat(file: Path) -> None:
    _lay(file.with_suffix(".jsonl"), CHAT)
    file.write_text("{% for message in messages %}{{ message.content }}{% endfor %}", encoding="utf-8")


KINDS = [
    kind_of(".jsonl", "rows.jsonl", ROWS, 10, read=lines, ways=spoils, write=write_lines),
    kind_of(".jsonl of messages", "messages.jsonl", CHAT, 8, read=lines, ways=spoils, write=write_lines),
    kind_of(".json", "rows.json", ROWS, 6, ways=spoils, write=write_json),
    Kind(
        "chat templates", "chat.jinja", [(*PROBE, "chat.jsonl", "--template", "chat.jinja")],
        ("start", "sft"), 2, lambda file: None, templates, write_template, make=write_chat, kept=FAILED,
        meant=lambda spoil: True,
    ),
    kind_of(".parquet", "rows.parquet", ROWS, 6, read=pd.read_parquet, ways=cells, write=write_parquet),
]  # fmt: skip

test = cases_of(KINDS)
