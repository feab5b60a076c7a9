"""The profile on a terminal: numbers that say less carry a mark, and the legend says what it means."""

import io

import pytest
from rich.console import Console

from midblock.base import LayerRow, LayerTable
from midblock.base.states import STATES
from midblock.cli.table import MARKS, WIDTH_WITH_INTERVALS, detectable_lines, show_profile


def printed(rows):
    text = io.StringIO()
    show_profile(LayerTable.from_rows(rows), Console(file=text, width=80))
    return text.getvalue()


def curve(metric, state="measured", value=0.1234, module="residual", low=0.1, high=0.15):
    return [
        LayerRow("sft", i, 3, metric, value, 9, low, high, "d", module, state if i else "measured") for i in range(3)
    ]


def test_every_state_that_says_less_has_a_mark():
    assert MARKS.keys() == STATES.keys() - {"measured"}
    assert len(set(MARKS.values())) == len(MARKS)


@pytest.mark.parametrize("state", ["below_floor", "as_random", "as_null", "too_few"])
def test_a_number_carries_the_mark_of_its_state(state):
    text = printed(curve("change_own", state))
    assert text.count(f"0.1234{MARKS[state]}") == 2
    assert text.count(f"{MARKS[state]} {STATES[state]}.") == 1
    assert not [mark for other, mark in MARKS.items() if other != state and mark in text]


def test_numbers_measured_in_full_carry_none():
    text = printed(curve("change_own") + curve("delta_rel", module="mlp"))
    assert not [mark for mark in MARKS.values() if mark in text]


def test_nothing_is_cut_where_all_columns_stand_with_their_intervals():
    metrics = ("cka_debiased", "cosine_similarity", "change_intensity_relative", "change_own", "change_increment")
    rows = [row for name in (*metrics, "logit_agreement") for row in curve(name, "as_random", low=0.111, high=0.135)]
    text = printed(rows + curve("delta_rel", module="attention") + curve("delta_rel", module="mlp"))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= WIDTH_WITH_INTERVALS


def test_what_could_have_been_detected_is_a_line_a_model():
    one = {"name": "sft", "detectable": {"change_own": 0.0123}}
    line = "Smallest difference that could have been detected: change_own 0.012 of base norm."
    assert detectable_lines({"models": [one]}) == [line]
    assert detectable_lines({"models": [one, {"name": "dpo", "detectable": {}}]}) == [f"sft: {line}"]
    assert detectable_lines({"models": []}) == []
