"""Every quoting is held against the language's own reader, on text that is written to break out."""

import ast
import io
import re
import unicodedata

import pandas as pd
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from midblock.base import LayerRow, LayerTable, MidblockError
from midblock.base.quoting import (
    cell,
    cell_text,
    markdown_code,
    markdown_text,
    printable,
    printable_lines,
    python_arguments,
    python_literal,
    without_places,
)
from midblock.base.yaml_text import yaml_text

HOSTILE = [
    'a"""); import os; os.system("touch X") #', "'; touch X #", "$(touch X)", "`touch X`", "```\nrm -rf\n```",
    "---\na: 1", "a\nb",
    "a\r\nb", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b31m", "\u202etxt.exe", "\u2028", "\x85", "\udc80",
    "<script>alert(1)</script>", "![x](http://a/b)", "a|b", "=1+1", "+1", "-1", "@x", "\t=1", "'=1", "''=1", "\\", "*",
    "_a_", "${X}", "{{ x }}", "é", "数学", "👩\u200d🔬", "", " ", "base", "\uff1d1",
]  # fmt: skip
texts = st.text(max_size=20) | st.sampled_from(HOSTILE) | st.lists(st.sampled_from(HOSTILE), max_size=3).map("".join)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(texts)
@settings(max_examples=100, deadline=None)
def test_printable_text_is_one_line_that_moves_nothing(text):
    shown = printable(text)
    assert shown.splitlines() in ([shown], [])
    assert all(unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") for c in shown)
    assert not re.search("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]", shown)
    shown.encode()
    assert printable(shown) == shown


@pytest.mark.parametrize("text", ["größer, 数学", "👩\u200d🔬 ❤️", "naïve\u200cی", "a b", "C:\\x", ""])
def test_what_prints_stays_as_it_is(text):
    assert printable(text) == text


def test_what_does_not_print_is_escaped():
    assert printable("a\x1b[31m\n\u202e\x9b\udc80") == "a\\x1b[31m\\n\\u202e\\x9b\\udc80"
    assert printable_lines("a\x1b\r\nb\tc") == "a\\x1b\nb   c"


@given(st.dictionaries(st.sampled_from(["r", "a_b", "x9"]), plain, max_size=3))
@settings(max_examples=100, deadline=None)
def test_arguments_read_back_as_they_were(values):
    tree = ast.parse(f"call(\n{python_arguments(values, 'a file')})")
    ((statement,), call) = tree.body, tree.body[0].value
    assert isinstance(statement, ast.Expr)
    assert isinstance(call, ast.Call)
    assert call.args == []
    assert {each.arg: ast.literal_eval(each.value) for each in call.keywords} == values


@pytest.mark.parametrize(
    "name", ['r=8); import os; os.system("touch X") #', "", "a b", "a-b", "class", "None", "ｒ", "a\nb", "1a", "é"]
)
def test_a_name_that_is_no_arguments_is_refused_in_one_line(name):
    with pytest.raises(MidblockError, match=r"a\\nfile: .* is no name of an option") as error:
        python_arguments({name: 1}, "a\nfile")
    assert "\n" not in str(error.value)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), [float("-inf")], object(), print, {"a": {1, object()}}, 10**5000, nested(5000)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_not_plain_is_refused(value):
    with pytest.raises(MidblockError, match="r of the adapter is no plain value"):
        python_literal(value, "r of the adapter")


def rendered(text):
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table").enable("strikethrough").parse(text)


@given(texts)
@example("[a]: http://b")
@settings(max_examples=150, deadline=None)
def test_markdown_text_is_text_alone(text):
    """In a table's cell, where the card has it, by a reader of CommonMark with tables."""
    tokens = rendered(f"| a | b |\n| --- | --- |\n| key | {markdown_text(text)} x |\n")
    kinds = [token.type for token in tokens]
    assert kinds.count("td_open") == 2
    assert kinds.count("table_open") == 1
    inside = [token for token in tokens if token.type == "inline"][-1]
    found = "".join(child.content for child in inside.children)
    assert {child.type for child in inside.children} <= {"text", "text_special"}
    assert found.split() == f"{printable(text)} x".split()


@given(texts)
@settings(max_examples=100, deadline=None)
def test_a_block_of_code_holds_just_the_text(text):
    tokens = rendered(f"before\n\n{markdown_code(text)}\n\nafter\n")
    assert [token.type for token in tokens if token.level == 0] == [
        "paragraph_open", "paragraph_close", "fence", "paragraph_open", "paragraph_close",
    ]  # fmt: skip
    assert next(token.content for token in tokens if token.type == "fence") == printable_lines(text) + "\n"


@given(plain)
@settings(max_examples=100, deadline=None)
@example("\x85")
def test_yaml_reads_back_what_is_written(value):
    written = yaml_text({"key": value, "list": [value]})
    written.encode()
    assert yaml.safe_load(written) == {"key": value, "list": [value]}
    assert not re.search(r"^---", written, re.MULTILINE)


@given(texts)
@settings(max_examples=200, deadline=None)
def test_a_cell_is_no_formula_and_reads_back(text):
    assert not re.match("[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]", cell(text))
    assert cell_text(cell(text)) == text


def test_a_tables_csv_is_no_formula_and_reads_back(tmp_path):
    names = [name for name in HOSTILE if name and "\udc80" not in name]
    table = LayerTable.from_rows([LayerRow(name, 0, 3, "cka", 0.5, 8, dataset=name, module=name) for name in names])
    table.write(tmp_path)
    raw = pd.read_csv(tmp_path / "layers.csv", dtype=str, keep_default_na=False)
    starts = {str(text)[:1] for column in ("model", "dataset", "module", "metric") for text in raw[column]}
    assert not starts & set("=+-@\t\r\uff1d")
    for file in ("layers.csv", "layers.parquet"):
        assert LayerTable.read(tmp_path / file).frame.equals(table.frame)


def test_a_plain_tables_csv_is_what_it_was(tmp_path):
    table = LayerTable.from_rows([LayerRow("sft", 0, 3, "cka", 0.5, 8, dataset="gsm8k")])
    table.write(tmp_path)
    plain = io.StringIO()
    table.frame.to_csv(plain, index=False, float_format="%.17g")
    assert (tmp_path / "layers.csv").read_text() == plain.getvalue()


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/me/models/sft", "sft"),
        ("/home/me/models/sft/", "sft"),
        ("~/sft", "sft"),
        ("~me/x/sft", "sft"),
        ("../me/sft", "sft"),
        ("runs/../../me/sft", "sft"),
        ("C:\\Users\\me\\sft", "sft"),
        ("C:/Users/me/sft", "sft"),
        ("\\\\server\\me\\sft", "sft"),
        ("--output-dir=/home/me/a", "--output-dir=a"),
        ("auto:/home/me/run", "auto:run"),
        ("--layers=auto:/home/me/run", "--layers=auto:run"),
        ("file:///home/me/x.jsonl", "file://x.jsonl"),
        ("/home/me/a:b,c=d", "a:b,c=d"),
        ("org/name@v1", "org/name@v1"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("builtin:smollm2", "builtin:smollm2"),
        ("runs/sft", "runs/sft"),
        ("0,0.5,1", "0,0.5,1"),
        ("--lora-r", "--lora-r"),
        ("", ""),
    ],
)
def test_places_of_this_machine_are_left_out(text, left):
    assert without_places(text) == left
