"""The section of erasing: numbers of the summary, whatever may be broken or hostile in it."""

import json

import pytest

from midblock.report.gather import read_one
from midblock.report.sections.erase import erase_sections
from midblock.report.write import page_of

HOSTILE = "</script><script>window.hacked=1</script>"


def level(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def cell(model):
    effect = {"before": level(0.9), "after": level(0.2), "change": level(-0.7)}
    start = {"rate": level(0.2), "curve": [[0, None, 2.0, 1.0, 1.0], [10, 1.5, 1.0, 0.5, 0.5]]}
    return {"title": f"{model} {HOSTILE}", "model": model, "judged": {"test": effect}, "nulls": {"random": effect},
            "kl_base": {"test": level(0.4)}, "starts": [start], "verdict": HOSTILE}  # fmt: skip


SUMMARY = {
    "headline": HOSTILE, "claim": HOSTILE, "said": [HOSTILE], "cells": [cell("carved"), cell("sft")],
    "plain": [{"name": name, "rates": {"test": level(0.5)}} for name in ("base", "carved", "sft")],
    "relearning": [{"title": HOSTILE, "steps": [0, 5], "rates": [0.0, 1.0], "first": level(4), "said": HOSTILE}],
}  # fmt: skip


def written(folder, summary):
    (folder / "run.json").write_text(json.dumps({"verb": "erase", "status": "done"}))
    (folder / "summary.json").write_text(json.dumps(summary))
    return read_one(folder)


def test_models_and_cells_stand_in_their_colours_and_nothing_runs(tmp_path):
    run = written(tmp_path, SUMMARY)
    (section,) = erase_sections(run)
    rows = section.charts[0].data["rows"]
    assert [row["look"] for row in rows] == ["m0", "m1", "m2", "m1", "m2"]
    assert rows[3]["value"] == [0.2, pytest.approx(0.1), pytest.approx(0.3)]
    assert "<script>window" not in section.body
    assert "<script>window" not in page_of(run)
    assert "10</text>" in section.body


@pytest.mark.parametrize(
    "broken",
    [
        {"cells": 3},
        {"cells": [{"starts": [{"curve": [None, [1]]}], "judged": [], "nulls": 1, "kl_base": None, "general": 2}]},
        {"cells": [cell("carved")], "plain": [1, {"rates": {"test": "no"}}], "said": 3, "claim": []},
        {"cells": [cell("carved")], "relearning": [{"steps": 1}, {"rates": [None], "steps": ["a"], "first": []}]},
    ],
)
def test_a_broken_summary_is_shown_as_far_as_it_goes(tmp_path, broken):
    assert page_of(written(tmp_path, broken)).startswith("<!DOCTYPE html>")
