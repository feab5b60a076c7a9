"""The sentence about a swap, for every kind of cell."""

import pytest

from midblock.base import Estimate
from midblock.interventions.swap.cells import EMBEDDING, Cell
from midblock.interventions.swap.headline import headline


def change(value, width=0.1):
    return Estimate(value, value - width, value + width, 9)


@pytest.mark.parametrize(
    ("cell", "start"),
    [
        (Cell(1, 2), "Blocks 1-2 of sft move the answers' NLL most of 2 swaps into base: by -0.500 nats per token"),
        (Cell(1, 1), "Block 1 of sft moves the answers' NLL most of 2 swaps into base: by -0.500"),
        (Cell(EMBEDDING, EMBEDDING), "The embedding of sft moves the answers' NLL most of 2 swaps into base: by"),
    ],
)
def test_the_cell_that_leads_furthest_towards_the_donor(cell, start):
    said = headline("base", "sft", "base", {Cell(0, 0): change(-0.2), cell: change(-0.5)}, gap=-1.0)
    assert said.startswith(start)
    assert said.endswith("(95 % interval -0.600 to -0.400); read by base's head, the models differ by -1.000")


def test_away_from_the_donor_is_not_towards_it():
    changes = {Cell(0, 0): change(-0.2), Cell(1, 1): change(0.9)}
    assert headline("base", "sft", "base", changes, gap=-1.0).startswith("Block 0 of sft moves")
    assert headline("sft", "base", "sft", changes, gap=1.0).startswith("Block 1 of base moves")


def test_too_few_prompts_are_told():
    none = Estimate(-0.5, float("nan"), float("nan"), 3)
    assert headline("base", "sft", "base", {Cell(0, 0): none}, gap=-1.0) == (
        "Block 0 of sft moves the answers' NLL most of 1 swaps into base: by -0.500 nats per token, with too few "
        "prompts for an interval; read by base's head, the models differ by -1.000"
    )


def test_what_no_interval_shows_is_not_said():
    said = headline("base", "sft", "base", {Cell(0, 0): change(-0.05)}, gap=-0.25)
    assert said == (
        "None of 1 swaps into base clearly moves the answers' NLL; read by base's head, the models differ by "
        "-0.250 nats per token"
    )
