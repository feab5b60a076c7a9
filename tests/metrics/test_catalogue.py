import math

import pytest
import torch

from midblock.base import MidblockError
from midblock.metrics.catalogue import METRICS, SETS, choose, columns, computed_from, values
from midblock.metrics.metric import Metric
from midblock.metrics.similarity import Pairs
from midblock.metrics.tokens import Tokens
from midblock.metrics.weights import NO_CHANGE, UNTURNED, Sums

SOURCES = (
    "tokens", "pooled", "own", "views", "lens", "heads", "routers", "loads", "weights", "spectrum", "spaces", "experts",
    "expert_spaces",
)  # fmt: skip


def test_every_metric_has_a_source_and_a_function():
    assert {metric.source for metric in METRICS.values()} == set(SOURCES)
    functions = [
        metric.compute for metric in METRICS.values() if metric.source != "heads"
    ]  # sums over counts of tokens
    assert None not in functions
    assert len(set(functions)) == len(functions)


def test_every_metric_is_computed_from_one_source():
    found = [name for source in SOURCES for name in computed_from(source, METRICS)]
    assert sorted(found) == sorted(METRICS)
    both = [name for paired in (True, False) for name in computed_from("pooled", METRICS, paired=paired)]
    assert sorted(both) == sorted(computed_from("pooled", METRICS))
    assert computed_from("tokens", {"curvature", "cka", "sparsity"}) == ("curvature", "sparsity")


@pytest.mark.parametrize("source", ["lens", "routers", "weights", "spectrum", "spaces", "experts", "expert_spaces"])
def test_what_reads_two_models_is_paired(source):
    assert all(METRICS[name].paired for name in computed_from(source, METRICS))
    assert all(
        METRICS[name].of_weights == (source not in ("lens", "routers")) for name in computed_from(source, METRICS)
    )


def test_what_has_a_direction_compares_two_models():
    assert all(METRICS[name].paired for name in METRICS if METRICS[name].same is not None)
    assert math.isnan(METRICS["own_share"].change(1.0))
    assert METRICS["cka"].change(0.75) == METRICS["procrustes"].change(0.25) == 0.25


@pytest.mark.parametrize("name", computed_from("pooled", METRICS, paired=True))
def test_a_model_compared_with_itself_scores_what_is_said(name):
    states = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)).double()
    moved = states + torch.randn(9, 5, generator=torch.Generator().manual_seed(1)).double() + 1
    nothing = torch.zeros_like(states)
    metric = METRICS[name]
    assert float(metric.compute(Pairs.whole(states, states, nothing)).mean()) == pytest.approx(metric.same, abs=1e-9)
    assert metric.change(float(metric.compute(Pairs.whole(states, moved, nothing)).mean())) > 0.01


def test_what_depends_on_the_number_of_prompts_says_so_and_what_does_not():
    named = {name: metric for name, metric in METRICS.items() if metric.depends_on_n}
    assert {"procrustes", "effective_rank_centered", "cka", "mean_shift", "mean_shift_relative"} <= named.keys()
    assert {metric.debiased for metric in named.values()} == {"", "cka_debiased", "mean_shift_debiased"}
    for metric in named.values():
        assert metric.debiased not in named
        assert "Depends on the number of prompts" in metric.caption
    assert METRICS["cka_debiased"].caption == METRICS["cka_debiased"].meaning


@pytest.mark.parametrize("attribute", ["floor_of", "debiased"])
def test_what_a_metric_refers_to_is_there(attribute):
    found = {getattr(metric, attribute) for metric in METRICS.values()} - {""}
    assert found
    assert found <= METRICS.keys()


def test_only_pairs_have_a_null():
    assert {METRICS[name].paired for name in METRICS if METRICS[name].null} == {True}


def test_values_leave_out_what_is_not_defined():
    assert values(computed_from("spectrum", METRICS), NO_CHANGE) == {"delta_spectral": 0}
    assert values(computed_from("spaces", METRICS), UNTURNED) == {
        "subspace_rotation_max": 0,
        "subspace_rotation_mean": 0,
    }
    assert values(["delta_fro"], Sums(4.0, 9.0, 1, 2)) == {"delta_fro": 3}


def test_columns_stand_in_the_order_of_their_names():
    states = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    tokens = Tokens(states, torch.ones(3, 7, dtype=torch.bool))
    found = columns(("sparsity", "curvature"), tokens)
    assert found.dtype == torch.float64
    assert torch.equal(found[:, 0], values(["sparsity"], tokens)["sparsity"])
    assert torch.equal(found[:, 1], values(["curvature"], tokens)["curvature"])


def test_a_metric_that_another_verb_measures_has_no_function(monkeypatch):
    monkeypatch.setitem(METRICS, "described", Metric("Described", "", "tokens", False, "", "Only described."))
    assert values(["described"], None) == {}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_can_be_read(name):
    metric = METRICS[name]
    assert metric.title
    assert metric.unit
    assert metric.meaning.endswith(".")
    assert metric.interval in ([""] if metric.of_weights else ["", "bootstrap", "share", "jackknife"])


def test_why_a_number_has_no_interval():
    assert METRICS["l2_norm"].without_interval(4) == METRICS["cka"].without_interval(8) == ""
    assert METRICS["l2_norm"].without_interval(3) == "3 are too few for an interval: 4 are needed"
    assert METRICS["cka"].without_interval(7) == "7 are too few for an interval: 8 are needed"
    assert "by jumps" in METRICS["rank_deficiency"].without_interval(500)
    assert METRICS["delta_rel"].without_interval(1) == ""


@pytest.mark.parametrize("name", METRICS)
def test_no_metric_name_looks_like_a_reference_row(name):
    assert "." not in name
    assert name not in SETS


def test_sets_grow_from_the_papers_to_all():
    p1, standard, everything = (choose(name) for name in ("p1", "standard", "all"))
    assert set(p1) < set(standard) < set(everything)
    assert everything == tuple(METRICS)


def test_names_and_sets_mix_in_table_order():
    assert choose("logit_kl, curvature") == ("curvature", "logit_kl")
    assert choose(["lidar", "p1"]) == tuple(name for name in METRICS if name in {*choose("p1"), "lidar"})


def test_names_given_twice_come_once():
    assert choose("cka,cka,p1,p1") == choose("p1")


def test_an_unknown_name_raises_with_the_nearest():
    with pytest.raises(MidblockError, match=r"unknown metric 'cka_debaised'.*'cka_debiased'"):
        choose("curvature,cka_debaised")
