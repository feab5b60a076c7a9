"""The grammar of a gate: what is read, and that anything else is refused in one line."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.analysis.gate.conditions import COMPARATORS, Condition, Layers, read_conditions
from midblock.base import MidblockError

NAN = math.nan


def only(text):
    (condition,) = read_conditions(text)
    return condition


def test_every_part_of_a_condition():
    found = only(" delta_rel : q_proj [0-5, 7,-1] @ sft >= 1e-3 ")
    assert (found.metric, found.module, found.model) == ("delta_rel", "q_proj", "sft")
    assert (found.comparator, found.bound, found.layers.of(12)) == (">=", 1e-3, {-1, *range(6), 7})
    assert found.text == "delta_rel : q_proj [0-5, 7,-1] @ sft >= 1e-3"


def test_only_the_metric_the_comparator_and_the_number_are_needed():
    assert only("cka<.9") == Condition("cka<.9", "cka", "<", 0.9)


def test_suffixes_belong_to_the_metric():
    assert only("cka_debiased.no_sinks.seed2<<0.9").metric == "cka_debiased.no_sinks.seed2"


@pytest.mark.parametrize("comparator", COMPARATORS)
def test_every_comparator(comparator):
    assert only(f"cka {comparator} -0.5").comparator == comparator


def test_commas_part_conditions_but_not_inside_brackets_and_quotes():
    found = read_conditions('cka[0,2]<0.9,cka@"a, b > \\"c\\"">1,gini>0.1')
    assert [each.metric for each in found] == ["cka", "cka", "gini"]
    assert found[0].layers.of(3) == {0, 2}
    assert found[1].model == 'a, b > "c"'


def test_a_model_s_name_may_have_spaces_and_brackets():
    assert only("cka@sft (2)<0.9").model == "sft (2)"
    assert only("cka[1]@base, rounded<0.9".replace("base, rounded", '"base, rounded"')).model == "base, rounded"


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("-1", {-1}),
        ("L", {4}),
        ("-1-1", {-1, 0, 1}),
        ("2-L", {2, 3, 4}),
        ("10", None),
        ("0-5", None),
        ("3", {3}),
        ("0.0-0.5", {0, 1}),
        ("0,0,1", {0, 1}),
    ],
)
def test_layers_of_a_model_of_four_blocks(text, layers):
    """10 is a layer here, never a segment: a gate that meant another depth than it says would be none."""
    asked = only(f"cka[{text}]>0").layers
    if layers is None:
        with pytest.raises(MidblockError, match=r"names layer (10|5); the model has -1 to 4"):
            asked.of(4)
    else:
        assert asked.of(4) == layers


def test_a_range_that_runs_backwards_names_nothing():
    with pytest.raises(MidblockError, match=r"\[3-1\] names no layer: 3 comes after 1"):
        only("cka[3-1]>0").layers.of(4)


@pytest.mark.parametrize(
    ("comparator", "value", "low", "high", "holds"),
    [
        (">", 0.6, 0.4, 0.8, True),
        (">>", 0.6, 0.4, 0.8, False),
        (">>", 0.6, 0.51, 0.8, True),
        ("<", 0.4, 0.2, 0.6, True),
        ("<<", 0.4, 0.2, 0.6, False),
        ("<<", 0.4, 0.2, 0.49, True),
        (">", 0.5, NAN, NAN, False),
        (">=", 0.5, NAN, NAN, True),
        ("<=", 0.5, NAN, NAN, True),
        ("<", 0.5, NAN, NAN, False),
        (">", NAN, NAN, NAN, None),
        ("<", NAN, NAN, NAN, None),
        (">>", 0.9, NAN, NAN, None),
        ("<<", 0.1, 0.0, NAN, None),
        (">>", NAN, 0.9, 1.0, None),
        (">", math.inf, NAN, NAN, True),
        ("<", -math.inf, NAN, NAN, True),
    ],
)
def test_when_a_condition_holds(comparator, value, low, high, holds):
    assert only(f"cka{comparator}0.5").holds(value, low, high) is holds


BAD = [
    "", " ", ",", "cka>0.5,", ",cka>0.5", "cka", "cka>", ">0.5", "cka 0.5", "cka=0.5", "cka==0.5", "cka!=0.5",
    "cka=>0.5", "cka>>>0.5", "cka><0.5", "cka>0.5>0.4", "0.1<cka<0.9", "cka>nan", "cka>inf", "cka>-inf", "cka>1e400",
    "cka>0x10", "cka>1_000", "cka>½", "cka>٣", "cka>50%", "cka>0,5", "cka[>0.5", "cka]>0.5", "cka[]>0.5",
    "cka[a]>0.5", "cka[1-]>0.5", "cka[-2]>0.5", "cka[--1]>0.5", "cka[L-1-2]>0.5", "cka[0..5]>0.5", "cka[0:5]>0.5",
    "cka[٣]>0.5", "cka[0-9999999999]>0", "cka[1,,2]>0.5", "cka[[1]]>0.5", "cka[1][2]>0.5", "cka@>0.5",
    'cka@"sft>0.5', 'cka@"\\q">0.5', "cka@a@b>0.5", "cka:>0.5", "cka:a:b>0.5", "cka@sft[0]>0.5", "cka>0.5 or gini>1",
    "cka>0.5;gini>1", "cka>0.5\x00", ".cka>0.5", "ckä>0.5", "cka >0.5 x", "\udcff", "x" * 10_001, "cka>" + "9" * 400,
    "[" * 5000, '"' * 4999, "cka[" + "0," * 3000 + "]>1",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD, ids=lambda text: ascii(text[:20]))
def test_anything_else_is_refused_in_one_line(text):
    with pytest.raises(MidblockError) as refused:
        read_conditions(text)
    said = str(refused.value)
    assert "\n" not in said
    assert len(said) < 400


LETTERS = st.sampled_from([*'cka.[]@:<>=-,L01e+"\\ \n٣', "cka", "0.5", ">>", "[0-5]", "@sft"])


@settings(deadline=None, max_examples=300)
@given(st.lists(LETTERS, max_size=14).map("".join))
def test_any_text_is_read_or_refused(text):
    try:
        found = read_conditions(text)
    except MidblockError as refused:
        assert len(str(refused)) < 400  # noqa: PT017
        return
    for condition in found:
        assert math.isfinite(condition.bound)
        assert read_conditions(condition.text) == (condition,)


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="0123456789L-,. ", max_size=12), st.integers(1, 12))
def test_layers_are_those_of_the_model_or_refused(text, total):
    try:
        layers = only(f"cka[{text}]>0").layers
        assert isinstance(layers, Layers)
        found = layers.of(total)
    except MidblockError:
        return
    assert found
    assert found <= set(range(-1, total + 1))
