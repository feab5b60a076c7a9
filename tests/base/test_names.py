"""Names in tables: unique, on one line, and never one that means something else there."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.base.names import RESERVED, numbered_apart, own_name, own_names
from midblock.base.quoting import printable

ODD = [
    "base",
    "base, rounded",
    "base (tuned)",
    " base",
    "",
    " ",
    "a|b",
    "a\nb",
    "a=b",
    "-a",
    "数学",
    "🚀",
    "\u202ea",
    "x" * 255,
]
pairs = st.lists(st.tuples(st.sampled_from([*ODD, "sft", "sft (2)"]), st.sampled_from([*ODD, "a/sft"])), max_size=6)


@given(pairs)
@settings(max_examples=150, deadline=None)
def test_names_are_apart_on_one_line_and_not_the_tables_own(given_names):
    short, whole = [list(each) for each in zip(*given_names, strict=True)] or [[], []]
    names = own_names(short, whole)
    assert len(set(names)) == len(names) == len(short)
    assert all(printable(name) == name and name.strip() not in {*RESERVED, ""} for name in names)


@pytest.mark.parametrize(
    ("short", "whole", "names"),
    [
        (["sft", "dpo"], ["a/sft", "a/dpo"], ["sft", "dpo"]),
        (["sft", "sft"], ["a/sft", "b/sft"], ["a/sft", "b/sft"]),
        (["sft", "sft"], ["sft", "sft"], ["sft", "sft (2)"]),
        (["base"], ["runs/base"], ["base (tuned)"]),
        (["base", "base"], ["base", "b/base"], ["base (tuned)", "b/base"]),
        (["base, rounded"], ["x"], ["base, rounded (tuned)"]),
        (["a\nb"], ["x"], ["a\\nb"]),
    ],
)
def test_the_rule(short, whole, names):
    assert own_names(short, whole) == names


def test_a_number_takes_no_other_models_name():
    assert numbered_apart(["a", "a", "a (2)"]) == ["a", "a (3)", "a (2)"]
    assert numbered_apart(["a", "b"], taken=["a", "a (2)"]) == ["a (3)", "b"]


def test_what_it_is_can_be_said():
    assert own_name("base", "merged") == "base (merged)"
    assert own_name("half", "merged") == "half"
