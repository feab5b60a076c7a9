"""Where runs point is planted in their tables and summaries."""

from pathlib import Path

import numpy as np
import pytest

from midblock.base import LayerRow, LayerTable
from midblock.runs.finished import Finished
from midblock.studies.evidence import Finding, Suggestion, findings, suggestions, width

L = 12


def run(verb: str, summary: dict, rows: list[LayerRow] | None = None) -> Finished:
    return Finished(LayerTable.from_rows(rows or []), {"verb": verb}, summary, Path(verb))


def curve(metric: str, values, model: str = "sft") -> list[LayerRow]:
    return [LayerRow(model, layer, L, metric, float(value), 8) for layer, value in enumerate(values)]


def analysis() -> Finished:
    """Blocks 4 to 7 hold all of the change; of `other` nearly all is in block 1."""
    change, other = np.zeros(L), np.full(L, 0.01)
    change[4:8] = other[1] = 1.0
    return run("analyze", {}, curve("change_own", change) + curve("change_own", other, "other"))


def cell(first: int, last: int, change: float, head: str = "base_head", host: str = "base") -> dict:
    nll = {"value": 2.0 + change, "low": 1.0, "high": 3.0, "change": change, "change_low": change - 0.1,
           "change_high": change + 0.1}  # fmt: skip
    return {"host": host, "donor": "sft", "head": head, "first": first, "last": last, "nll": nll}


def swap(*cells: dict, mode: str = "segments") -> Finished:
    return run("swap", {"mode": mode, "tuned": "sft", "cells": list(cells)})


def probe(tuned: tuple[int, int, int], base: tuple[int, int, int]) -> Finished:
    models = [
        {"name": name, "emergence": {"accuracy": dict(zip(("layer", "low", "high"), places, strict=True))}}
        for name, places in (("base", base), ("sft", tuned))
    ]
    return run("probe", {"models": models})


def test_the_rule_chooses_for_each_tuned_model():
    found = suggestions([analysis(), run("probe", {})])
    assert [(one.model, one.first_of_run) for one in found] == [("sft", True), ("other", False)]
    assert found[0].window == (4, 5)  # half of four equal blocks, the first of equals
    assert found[1].window == (1, 1)
    assert suggestions([run("probe", {})]) == []


def test_a_swap_points_at_what_lowers_the_base_most():
    (found,) = findings([swap(cell(0, 3, -0.2), cell(4, 7, -0.5), cell(8, 11, 0.4))], "sft")
    assert (found.verb, found.span, found.intervenes, found.clear) == ("swap", (4, 7), True, True)
    # of a summary without intervals for all cells at once: wider, for the best of three
    assert (found.amount.low + found.amount.high) / 2 == pytest.approx(found.amount.value) == -0.5
    assert 0.12 < found.amount.high - found.amount.value < 0.13
    assert findings([swap(cell(0, 3, -0.2))], "other") == []
    assert findings([swap(cell(0, 3, 0.2))], "sft") == []
    assert findings([swap(cell(0, 3, -0.2), mode="bottom")], "sft") == []


def test_the_best_of_several_that_may_do_nothing_is_not_clear():
    cells = [cell(first, first, -0.11 if first == 5 else -0.05) for first in range(12)]
    (found,) = findings([swap(*cells)], "sft")
    assert (found.span, found.clear) == ((5, 5), False)  # by itself it would be: -0.21 to -0.01
    (alone,) = findings([swap(cells[5])], "sft")
    assert alone.clear
    cells[5]["nll"] |= {"change_low_of_all": -0.2, "change_high_of_all": -0.02}
    (known,) = findings([swap(*cells)], "sft")
    assert (known.clear, known.amount.high) == (True, -0.02)


def test_a_push_that_may_be_luck_is_not_clear():
    changes = np.linspace(-0.3, -0.1, L)
    for half, clear in ((0.05, True), (0.25, False)):
        rows = [LayerRow("sft", layer, L, "steer_nll_change", value, 8, value - half, value + half)
                for layer, value in enumerate(changes.tolist())]  # fmt: skip
        (found,) = findings([run("steer", {}, rows)], "sft")
        assert (found.span, found.clear) == ((0, 0), clear)


def test_the_bases_own_head_counts_first():
    cells = cell(0, 3, -0.1), cell(4, 7, -0.9, head="tuned_head"), cell(8, 11, -0.9, host="sft")
    assert findings([swap(*cells)], "sft")[0].span == (0, 3)
    assert findings([swap(*cells[1:])], "sft")[0].span == (4, 7)


@pytest.mark.parametrize(("tuned", "clear"), [((3, 2, 4), True), ((7, 5, 8), False), ((3, 3, 6), False)])
def test_answers_emerge_clearly_where_intervals_do_not_overlap(tuned, clear):
    (found,) = findings([probe(tuned, (7, 6, 8))], "sft")
    assert (found.span, found.in_base, found.clear) == ((tuned[0], tuned[0]), 7, clear)


def test_a_push_is_judged_against_random_ones():
    changes, random = np.full(L, -0.1), np.zeros(L)
    changes[3], random[3] = -0.9, -0.85
    changes[6] = -0.4
    rows = curve("steer_nll_change", changes) + curve("steer_nll_change.random", random)
    (found,) = findings([run("steer", {}, rows)], "sft")
    assert found.span == (6, 6)
    assert found.amount.value == pytest.approx(-0.4)
    assert findings([run("steer", {}, curve("steer_nll_change", np.full(L, 0.1)))], "sft") == []


def test_a_gradient_is_about_what_was_tuned_in_its_own_run():
    flow = run("flow", {"peak": {"gradient_norm": 2}}, curve("gradient_norm", np.ones(L), "flow"))
    assert findings([flow], "sft") == [Finding("flow", "flow", (2, 2))]
    assert findings([run("flow", {"peak": {"gradient_norm": "2"}})], "sft") == []


@pytest.mark.parametrize(
    ("span", "inside", "agrees"), [((4, 7), 4, True), ((6, 9), 2, True), ((7, 9), 1, False), ((8, 9), 0, False)]
)
def test_half_of_a_findings_blocks_make_it_agree(span, inside, agrees):
    finding = Finding("swap", "sft", span, intervenes=True)
    found = Suggestion("sft", analysis(), (4, 7), True, (finding,))
    assert (found.inside(finding), found.agrees(finding), found.counted) == (inside, agrees, (agrees,))
    assert found.rival == (None if agrees else span)
    assert width(span) == span[1] - span[0] + 1


def test_what_is_not_clear_counts_neither_way_and_a_reading_is_no_rival():
    unclear, reading = Finding("probe", "sft", (0, 0), clear=False), Finding("flow", "flow", (0, 0))
    found = Suggestion("sft", analysis(), (4, 7), True, (unclear, reading))
    assert (found.agrees(unclear), found.counted, found.rival) == (None, (False,), None)
