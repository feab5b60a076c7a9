"""Tables are printed whole, whatever the width: numbers on one line, names and verdicts in full."""

import io
import re

import pytest
from rich.console import Console

from midblock.base import LayerTable
from midblock.cli.evaluate import _comparisons, _scores
from midblock.cli.fitting import print_whole
from midblock.cli.table import show_profile

from .test_table import curve

NAME = "pbase+carved-from-a-long-run+erased/checkpoint_of-the-last-step"
ESTIMATE = {"low": -0.161, "high": 0.161}
COMPARED = {
    "task": "exact_match:prompts.jsonl", "second": NAME, "first": "sft", "difference": 0.0, **ESTIMATE, "p_holm": 0.5,
    "detectable": 0.2, "verdict": "the evidence does not say",
}  # fmt: skip
SCORED = {
    "task": "gsm_symbolic", "model": NAME, "metric": "accuracy", "value": 0.5, **ESTIMATE, "n": 8, "no_answer": 1,
    "cut": 3,
}  # fmt: skip


def printed(table, width, watched):
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=watched, color_system=None, markup=False, highlight=False)
    print_whole(table, console)
    assert console.width == width
    return file.getvalue()


@pytest.mark.parametrize("table", [_comparisons([COMPARED]), _scores([SCORED])])
def test_a_row_is_a_line_where_nobody_watches(table):
    text = printed(table, 80, watched=False)
    assert NAME in text
    assert "…" not in text
    row = next(line for line in text.splitlines() if NAME in line)
    assert re.search(r"0\.000 \(-0\.161 to \+0\.161\)|0\.500 \(-0\.161 to 0\.161\)", row)


@pytest.mark.parametrize("width", [200, 132, 100, 80, 60, 30])
@pytest.mark.parametrize("made", [lambda: _comparisons([COMPARED]), lambda: _scores([SCORED])])
def test_in_a_terminal_nothing_is_cut_off(made, width):
    text = printed(made(), width, watched=True)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    words = text.replace(";", "").split()
    assert {"(-0.161", "0.500" if "items" in words else "+0.000"} <= set(words)
    if width >= len(NAME) and ";" in text:  # a paragraph for each row
        assert NAME in words


def test_a_profile_in_a_narrow_terminal_keeps_its_numbers():
    metrics = ("cka_debiased", "cosine_similarity", "change_intensity_relative", "change_own", "change_increment")
    table = LayerTable.from_rows([row for name in metrics for row in curve(name, "as_random")])
    for width in (100, 60, 30):
        file = io.StringIO()
        show_profile(table, Console(file=file, width=width, force_terminal=True, color_system=None))
        assert file.getvalue().count("0.1234≈") == 10
