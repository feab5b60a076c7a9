"""The page of a carving: verdicts and table, escaped; where the carrier lies beside own change, or why not."""

from pathlib import Path

import pytest

from midblock.base import LayerRow, LayerTable
from midblock.report.read.joint import Joint
from midblock.report.read.reading import Run
from midblock.report.sections.carried_change import carried_change_section
from midblock.report.sections.carve import carve_sections, necessity_levels
from midblock.report.write import page_of

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
BLOCKS = 24


def level(contender, kind, measure, value):
    return {
        "contender": contender, "kind": kind, "measure": measure, "value": value, "low": value - 0.1,
        "high": value + 0.1, "tuned_difference": value - 1, "tuned_low": None, "tuned_high": None, "tuned_p": 0.03,
    }  # fmt: skip


def carving(density, **summary):
    rows = [LayerRow("carved", layer, BLOCKS, "mask_density", value, 9, module=module)
            for layer, value in enumerate(density) for module in ("block", "ffn_hidden")]  # fmt: skip
    models = [
        {"name": "base", "role": "base", "weight_hash": "b"},
        {"name": "tuned", "role": "tuned", "weight_hash": "t"},
    ]
    record = {"verb": "carve", "status": "done", "models": models}
    return Run(LayerTable.from_rows(rows), record, summary, Path("carved"))


def analysis(change, weight_hash="t"):
    rows = [LayerRow("sft", layer, BLOCKS, "change_own", value, 9) for layer, value in enumerate(change)]
    record = {
        "verb": "analyze",
        "status": "done",
        "models": [{"name": "sft", "role": "tuned", "weight_hash": weight_hash}],
    }
    return Run(LayerTable.from_rows(rows), record, {}, Path("analysed"))


def bumpy(shift=0):
    return [0.1 + ((7 * (layer + shift)) % 11) / 20 for layer in range(BLOCKS)]


def test_verdicts_and_table_are_shown_escaped():
    summary = {
        "headline": f"necessary {HOSTILE}",
        "behaviour": HOSTILE,
        "verdicts": [{"words": f"The carrier is necessary {HOSTILE}"}],
        "measures": [{"name": "behaviour", "title": HOSTILE, "about": HOSTILE}, {"name": "loss", "title": "NLL"}],
        "necessity": [level(HOSTILE, "carrier", "behaviour", 0.9), level(HOSTILE, "carrier", "loss", 2.0)],
        "sizes": {"carrier_bytes": 1000, "delta_bytes": 9000, "model_bytes": 9e6, "candidates": {}},
    }
    run = Joint.of([carving(bumpy(), **summary)])
    sections = carve_sections(run)
    assert [section.id for section in sections] == ["necessity", "carried"]
    body = sections[0].body
    assert HOSTILE not in body
    assert "The carrier is necessary &lt;/script&gt;" in body
    assert "0.9 [0.8, 1]" in body
    page = page_of(run)
    assert HOSTILE not in page
    assert "<img src=x" not in page


@pytest.mark.parametrize(
    "broken", [{}, {"necessity": "x", "verdicts": 3}, {"necessity": [{"measure": "behaviour"}, 4]}]
)
def test_a_broken_summary_shows_what_there_is(broken):
    run = Joint.of([carving(bumpy(), **broken)])
    assert [section.id for section in carve_sections(run)] == ["carried"]
    assert not necessity_levels(run.runs[0])


def test_a_carrier_that_sits_where_the_change_is():
    section = carried_change_section(Joint.of([carving(bumpy()), analysis(bumpy())]))
    assert "rank correlation 1" in section.charts[0].caption
    assert "they go together" in section.charts[0].caption


def test_a_carrier_that_does_not():
    away = [1 - value for value in bumpy()]
    section = carried_change_section(Joint.of([carving(bumpy()), analysis(away)]))
    assert "they lie apart" in section.charts[0].caption


def test_curves_that_only_rise_say_nothing():
    rising = [0.1 + layer / 40 for layer in range(BLOCKS)]
    section = carried_change_section(Joint.of([carving(rising), analysis(rising)]))
    assert "the evidence does not say" in section.charts[0].caption


def test_the_reasons_for_no_correlation():
    flat = carried_change_section(Joint.of([carving([0.5] * BLOCKS), analysis(bumpy())]))
    assert "a curve that is the same everywhere" in flat.charts[0].caption
    other = carried_change_section(Joint.of([carving(bumpy()), analysis(bumpy(), weight_hash="x")]))
    assert "no analysis of the model that it was carved from" in other.charts[0].caption
    assert carried_change_section(Joint.of([carving(bumpy())])) is None
