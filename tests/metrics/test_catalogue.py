import pytest

from midblock.base import MidblockError
from midblock.metrics.catalogue import METRICS, SETS, choose
from midblock.metrics.geometry import GEOMETRY_METRICS
from midblock.metrics.lens import LENS_METRICS
from midblock.metrics.similarity import SIMILARITY_METRICS
from midblock.metrics.tokens import TOKEN_METRICS
from midblock.metrics.views import VIEW_METRICS
from midblock.metrics.weights import DELTA_METRICS, NORM_METRICS, ROTATION_METRICS

ROOM = {
    "tokens": set(TOKEN_METRICS),
    "lens": set(LENS_METRICS),
    "views": set(VIEW_METRICS),
    "weights": NORM_METRICS | DELTA_METRICS | ROTATION_METRICS,
    "pooled": GEOMETRY_METRICS | SIMILARITY_METRICS | {"l2_norm", "cosine_similarity", "change_intensity"},
}


@pytest.mark.parametrize("source", ROOM)
def test_the_table_names_what_the_room_computes(source):
    assert {name for name, metric in METRICS.items() if metric.source == source} == ROOM[source]


def test_paired_metrics_are_those_that_take_two_models():
    paired = SIMILARITY_METRICS | set(LENS_METRICS) | ROOM["weights"] | {"cosine_similarity", "change_intensity"}
    assert {name for name, metric in METRICS.items() if metric.paired} == paired


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_can_be_read(name):
    metric = METRICS[name]
    assert metric.title
    assert metric.unit
    assert metric.meaning.endswith(".")
    assert metric.interval == "" if metric.source == "weights" else metric.interval in ("bootstrap", "jackknife")
    # an interval is cut at its bounds, and numpy's clip wants one
    assert metric.bounds != (None, None)


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
