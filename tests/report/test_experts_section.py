"""Experts on the page: figures of what was measured, a map only where experts were asked for, and in no other map."""

from pathlib import Path

from midblock.base import LayerRow, LayerTable
from midblock.report.figures.analysis import FIGURES
from midblock.report.figures.paper import write_figures
from midblock.report.read.reading import Run
from midblock.report.sections.experts import MOST_EXPERTS, experts_section
from midblock.report.sections.profile import sections_of

L = 3


def run_of(rows):
    return Run(table=LayerTable.from_rows(rows), folder=Path(), record={}, summary={})


def curve(metric, model="sft", module="residual", values=(0.1, 0.2, 0.3)):
    return [LayerRow(model, layer, L, metric, value, 10, module=module) for layer, value in enumerate(values)]


def by_expert(metric, experts, model="sft"):
    return [row for expert in range(experts) for row in curve(metric, model, f"expert:{expert}", (0.1 * expert,) * L)]


def test_curves_alone_where_no_expert_was_asked_for():
    section = experts_section(run_of(curve("expert_load_shift") + curve("router_change")))
    assert [chart.id for chart in section.charts] == ["expert_load_shift", "router_change"]
    assert "router" in section.intro


def test_a_map_of_layer_by_expert_in_their_own_order():
    run = run_of(curve("router_change") + by_expert("expert_load", 12, "base") + by_expert("expert_load", 12))
    heat = experts_section(run).charts[-1]
    assert (heat.kind, heat.metrics) == ("heat", ("expert_load",))
    assert [label for label, _ in heat.rows] == [f"expert {expert}" for expert in range(12)]


def test_of_many_experts_those_that_differ_most():
    run = run_of(by_expert("expert_load_change", 4 * MOST_EXPERTS))
    heat = experts_section(run).charts[-1]
    assert len(heat.rows) == MOST_EXPERTS
    assert ("expert 0", ("expert:0",)) in heat.rows
    assert (f"expert {4 * MOST_EXPERTS - 1}", (f"expert:{4 * MOST_EXPERTS - 1}",)) in heat.rows
    assert f"Of {4 * MOST_EXPERTS} experts" in heat.caption


def test_experts_are_no_weights_and_nothing_is_drawn_twice():
    rows = curve("router_change") + by_expert("expert_delta_rel", 4) + curve("delta_rel", module="router")
    sections = {section.id: section for section in sections_of(run_of(rows))}
    assert sections["weights"].charts[0].metrics == ("delta_rel",)
    assert "others" not in sections
    assert sections["experts"].charts[-1].metrics == ("expert_delta_rel",)


def test_the_curves_are_a_figure_for_papers_too(tmp_path):
    found = write_figures(run_of(curve("expert_load_shift") + curve("router_change_own")), tmp_path, FIGURES)
    assert "experts" in found
    assert "experts" not in write_figures(run_of(curve("cka")), tmp_path / "dense", FIGURES)


def test_a_model_without_experts_has_no_such_section():
    assert "experts" not in {section.id for section in sections_of(run_of(curve("cka")))}
