"""Which arm is best: one that really is, planted, is found; where none is, nothing is said."""

import numpy as np
import pytest

from midblock.base import MidblockError
from midblock.base.clusters import Clusters
from midblock.studies.study import best
from midblock.studies.study.best import UNDECIDED, Scores, compare_arms, draws, judge


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(best, "RESAMPLES", 2000)


def answered(chances, seeds=3, items=300, seed=0, spread=0.0):
    """Right and wrong answers: items differ in how hard they are, seeds by `spread`."""
    drawn = np.random.default_rng(seed)
    hard = drawn.normal(0, 1, items)
    off = drawn.normal(0, spread, (len(chances), seeds, 1))
    level = np.log(np.array(chances) / (1 - np.array(chances)))[:, None, None]
    values = drawn.random((len(chances), seeds, items)) < 1 / (1 + np.exp(-(level + off + hard)))
    return Scores(tuple("abcdefghi"[: len(chances)]), values.astype(float), np.ones(items))


def test_one_that_is_really_better_is_found():
    verdict = judge(answered([0.2, 0.2, 0.45, 0.2]), 0.95)
    assert verdict.best == verdict.leader == "c"
    assert verdict.probabilities[2] > 0.99
    found = compare_arms(verdict, "a", verdict.scores.arms)
    assert [(each.arm, each.verdict) for each in found] == [("b", UNDECIDED), ("c", "better"), ("d", UNDECIDED)]
    assert found[1].low > 0
    assert found[1].detectable < found[1].difference


def test_a_worse_one_is_called_worse():
    verdict = judge(answered([0.5, 0.2]), 0.95)
    assert [each.verdict for each in compare_arms(verdict, "a", ["b"])] == ["worse"]
    assert verdict.best == "a"


def test_arms_that_are_level_share_the_first_place():
    scores = answered([0.3])
    same = Scores(("a", "b", "c", "d"), np.repeat(scores.values, 4, axis=0), scores.weights)
    verdict = judge(same, 0.95)
    assert verdict.best is None
    assert verdict.probabilities == pytest.approx([0.25] * 4)
    assert {each.p_holm for each in compare_arms(verdict, "a", same.arms)} == {1.0}


def test_where_none_is_better_a_verdict_is_rare():
    """Four arms alike, seeds that differ: each is best in a quarter of the draws on average, and seldom called so."""
    found = [judge(answered([0.3] * 4, items=100, seed=seed, spread=0.1), 0.95) for seed in range(40)]
    assert np.mean([each.probabilities for each in found], axis=0) == pytest.approx([0.25] * 4, abs=0.12)
    assert sum(each.best is not None for each in found) <= 2


def test_seeds_that_disagree_make_it_unsure():
    """Better on every item, but for one seed alone: a bootstrap over items would be sure."""
    values = np.zeros((2, 3, 200))
    values[1, 0] = 1.0
    verdict = judge(Scores(("a", "b"), values, np.ones(200)), 0.95)
    assert verdict.best is None
    one_seed = judge(Scores(("a", "b"), values[:, :1], np.ones(200)), 0.95)
    assert one_seed.best == "b"


def test_variants_are_resampled_whole():
    """Twenty questions, each asked ten times alike, are worth twenty."""
    drawn = np.random.default_rng(0).random((1, 1, 20)) < 0.5
    values = np.repeat(drawn.astype(float), 10, axis=2)
    clusters = Clusters.of([str(place // 10) for place in range(200)])
    spread = [draws(Scores(("a",), values, np.ones(200), each)).std() for each in (None, clusters)]
    assert spread[1] / spread[0] == pytest.approx(np.sqrt(10), rel=0.1)


def test_the_spread_is_that_of_the_mean():
    """Of one seed: the standard error of a share; of equal items and several seeds: Student's, wider."""
    values = (np.arange(400) % 4 == 0).astype(float)[None, None]
    assert draws(Scores(("a",), values, np.ones(400))).std() == pytest.approx(np.sqrt(0.25 * 0.75 / 400), rel=0.05)
    seeds = np.repeat(np.array([0.1, 0.2, 0.6])[None, :, None], 50, axis=2)
    drawn = draws(Scores(("a",), seeds, np.ones(50)))[:, 0]
    error = np.std([0.1, 0.2, 0.6], ddof=1) / np.sqrt(3)
    assert np.subtract(*np.quantile(drawn, [0.75, 0.25])) > 1.349 * error  # of a normal one


def test_weights_count():
    scores = Scores(("a",), np.array([[[1.0, 0.0]]]), np.array([3.0, 1.0]))
    assert scores.means == pytest.approx([0.75])


def test_nothing_to_compare_is_said():
    with pytest.raises(MidblockError, match="there are no scores"):
        judge(Scores((), np.zeros((0, 1, 1)), np.ones(1)), 0.95)
    with pytest.raises(MidblockError, match="z has no scores"):
        compare_arms(judge(answered([0.3, 0.3]), 0.95), "z", ["a"])
