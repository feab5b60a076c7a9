"""A prompt whose pooled state is zero has no direction: it is counted out, and takes no other prompt's number along."""

import math

import pytest
import torch

from midblock.metrics.catalogue import METRICS
from midblock.metrics.geometry import Pooled, States, dataset_entropy
from midblock.metrics.similarity import Pairing, Pairs, Shuffled, cosine_centered, cosine_similarity
from midblock.metrics.uncertainty import bootstrap_means, permutations
from midblock.metrics.views import Views, dime, infonce, lidar

N, D = 12, 8
OF_POOLED = [name for name, metric in METRICS.items() if metric.source == "pooled" and not metric.paired]
OF_PAIRS = [name for name, metric in METRICS.items() if metric.source == "pooled" and metric.paired]
OF_VIEWS = [name for name, metric in METRICS.items() if metric.source == "views"]
WITH_NULL = [name for name in OF_PAIRS if METRICS[name].null]


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def zeroed(X, *rows):
    X = X.clone()
    X[..., list(rows), :] = 0
    return X


def sets():
    return torch.stack([torch.arange(N), torch.arange(N).flip(0)])


def pairing(base_zero=(), tuned_zero=()):
    base, tuned = gaussian(N, D), gaussian(N, D, seed=1)
    return Pairing.of(zeroed(base, *base_zero), zeroed(tuned, *tuned_zero), torch.zeros(N, D, dtype=torch.float64))


@pytest.mark.parametrize("name", OF_POOLED)
def test_one_zero_row_leaves_every_metric_of_one_model_a_number(name):
    found = METRICS[name].compute(Pooled(States.of(zeroed(gaussian(N, D), 3)), sets()))
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("zero", [{"base_zero": (3,)}, {"tuned_zero": (3,)}, {"base_zero": (3,), "tuned_zero": (3,)}])
@pytest.mark.parametrize("name", OF_PAIRS)
def test_one_zero_row_leaves_every_comparison_a_number(name, zero):
    found = METRICS[name].compute(Pairs(pairing(**zero), sets()))
    if METRICS[name].interval == "bootstrap":
        (mean,) = bootstrap_means(found[:, None], seed=0)
        assert mean.n in (N, N - 1)
        found = torch.tensor([mean.value, mean.low, mean.high])
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", WITH_NULL)
def test_one_zero_row_leaves_every_null_a_number(name):
    found = METRICS[name].null(Shuffled(pairing(base_zero=(3,), tuned_zero=(5,)), permutations(N, 0, 20)))
    assert torch.isfinite(found).all()


def test_many_prompts_have_the_same_null(monkeypatch):
    """Above some prompts the cosines are taken order by order: the same numbers."""
    shuffled = Shuffled(pairing(base_zero=(3,), tuned_zero=(5,)), permutations(N, 0, 20))
    at_once = METRICS["cosine_similarity"].null(shuffled)
    monkeypatch.setattr("midblock.metrics.similarity.COSINES", 1)
    assert torch.allclose(at_once, METRICS["cosine_similarity"].null(shuffled))


@pytest.mark.parametrize("name", OF_VIEWS)
def test_one_zero_row_leaves_every_metric_of_views_a_number(name):
    views = torch.stack([zeroed(gaussian(N, D), 3), zeroed(gaussian(N, D, seed=1), 5)])
    found = METRICS[name].compute(Views(views, sets()))
    lost = torch.tensor([at in (3, 5) for at in range(N)]) if METRICS[name].interval == "bootstrap" else None
    assert torch.equal(torch.isnan(found), torch.zeros_like(found, dtype=torch.bool) if lost is None else lost)


def test_a_zero_row_is_counted_out():
    """Cosines, entropies and losses are those of the other prompts alone."""
    base, tuned, rest = gaussian(N, D), gaussian(N, D, seed=1), [at for at in range(N) if at != 3]
    pairs, others = Pairs.whole(base, zeroed(tuned, 3)), Pairs.whole(base[rest], tuned[rest])
    assert float(cosine_similarity(pairs).nanmean()) == pytest.approx(float(cosine_similarity(others).mean()))
    ours, theirs = (Pooled(States.of(X), torch.arange(len(X))[None]) for X in (zeroed(base, 3), base[rest]))
    assert float(dataset_entropy(ours)) == pytest.approx(float(dataset_entropy(theirs)))  # both over ln D
    both = torch.stack([base, tuned])
    lossy, whole = infonce(Views.whole(zeroed(both, 3))), infonce(Views.whole(both[:, rest]))
    assert lossy[rest].tolist() == pytest.approx(whole.tolist())
    assert math.isnan(lossy[3])
    assert float(dime(Views.whole(zeroed(both, 3)))) == pytest.approx(float(dime(Views.whole(both[:, rest]))))


def test_a_row_that_is_the_mean_has_no_direction_from_there():
    half = gaussian(5, D).round()
    base, tuned = torch.cat([half, -half, torch.zeros(1, D, dtype=torch.float64)]), gaussian(11, D, seed=1)
    expected = torch.cosine_similarity(base[:10], (tuned - tuned.mean(0))[:10]).mean()
    assert float(cosine_centered(Pairs.whole(base, tuned))) == pytest.approx(float(expected))
    null = METRICS["cosine_centered"].null(Shuffled(Pairing.of(base, tuned), permutations(11, 0, 20)))
    assert torch.isfinite(null).all()


@pytest.mark.parametrize("name", [*OF_POOLED, *OF_PAIRS])
def test_states_that_are_all_zero_have_no_value_where_there_is_none_to_give(name):
    """No error, and nothing but a number or NaN, which an analysis tells."""
    zero = torch.zeros(N, D, dtype=torch.float64)
    metric = METRICS[name]
    statistics = [Pooled(States.of(zero), sets())]
    if metric.paired:
        two_sides = ((zero, zero), (zero, gaussian(N, D)), (gaussian(N, D), zero))
        statistics = [Pairs(Pairing.of(*sides, zero), sets()) for sides in two_sides]
    for statistic in statistics:
        assert metric.compute(statistic).dtype == torch.float64
    if metric.null is not None:
        assert len(metric.null(Shuffled(Pairing.of(zero, gaussian(N, D)), permutations(N, 0, 5)))) == 5


def test_entropy_of_views_that_are_zero():
    assert math.isnan(float(dime(Views.whole(torch.zeros(2, N, D, dtype=torch.float64)))))
    assert math.isnan(float(lidar(Views.whole(torch.zeros(2, N, D, dtype=torch.float64)))))
