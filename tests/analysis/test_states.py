"""The state of each number: planted changes are measured where they are, and what is none is never called one."""

import copy
import math

import pytest
import torch

from midblock.analysis import analyze
from midblock.analysis.states import with_states
from midblock.base import LayerRow
from midblock.base.names import BASE
from midblock.checkpoints import Pair
from midblock.data import load_dataset
from midblock.metrics.catalogue import METRICS
from midblock.metrics.metric import NO_SINKS, NULL, PRECISION_FLOOR, RANDOM, SEEDS

from .test_own_change import changed

NAN = math.nan
BLOCKS = 4
SMALL = {"num_samples": 10, "num_token_samples": 10, "weights": False}


def row(metric, value, low=NAN, high=NAN, model="sft", n=20, **place):
    return LayerRow(model, 1, 3, metric, value, n, low, high, **{"dataset": "d", **place})


def state(*rows, rounding=1.0):
    return with_states(rows, rounding)[0].state


def floor(metric, value):
    return row(metric + PRECISION_FLOOR, value, model=BASE)


@pytest.mark.parametrize("metric", [name for name, each in METRICS.items() if each.same is not None])
def test_the_value_of_a_model_with_itself_is_no_change(metric):
    same = METRICS[metric].same
    expected = "measured" if METRICS[metric].of_weights else "below_floor"  # weights are compared bit by bit
    assert state(row(metric, same, same, same)) == expected


@pytest.mark.parametrize(
    ("metric", "less", "more", "edge"),
    [
        ("cka_debiased", 0.9999, 0.99, 0.999),
        ("logit_agreement", 0.99, 0.8, 0.95),
        ("change_increment", 0.01, 0.1, 0.02),
    ],
)
def test_a_change_counts_beyond_the_floor_whichever_way_it_goes(metric, less, more, edge):
    found = [state(row(metric, value, value, value), floor(metric, edge)) for value in (less, edge, more)]
    assert found == ["below_floor", "below_floor", "measured"]


def test_a_run_in_a_finer_precision_has_a_finer_floor():
    planted, coarse = row("change_increment", 1e-3, 9e-4, 2e-3), floor("change_increment", 5e-3)
    assert state(planted, coarse) == "below_floor"
    assert state(planted, coarse, rounding=2.0**-16) == "measured"
    assert state(row("change_increment", 1e-8, 0, 2e-8), coarse, rounding=2.0**-16) == "below_floor"


def test_own_change_is_judged_by_what_rounding_adds_across_the_block():
    lent = floor("change_increment", 0.01)
    assert state(row("change_own", 0.005, 0.004, 0.006), lent) == "below_floor"
    assert state(row("change_own", 0.02, 0.01, 0.03), lent) == "measured"
    share = row("own_share", 0.7, 0.6, 0.8)
    assert state(share, row("change_increment", 0.005, 0.004, 0.006), lent) == "below_floor"
    assert state(share, row("change_increment", 0.02, 0.01, 0.03), lent) == "measured"
    assert state(share) == "measured"


def test_each_set_of_tokens_has_its_own_references():
    rows = [row("change_own" + NO_SINKS, 0.02, 0.01, 0.03), floor("change_increment", 0.05)]
    assert state(*rows) == "measured"
    assert state(*rows, floor("change_increment" + NO_SINKS, 0.05)) == "below_floor"


@pytest.mark.parametrize(
    ("metric", "null", "near", "far"),
    [("cosine_centered", (-0.1, 0.2), 0.5, 0.15), ("procrustes", (1.2, 1.4), 0.5, 1.25)],
)
def test_what_is_no_more_alike_than_unrelated_prompts(metric, null, near, far):
    reference = row(metric + NULL, sum(null) / 2, *null)
    assert state(row(metric, near, near, near), reference) == "measured"
    assert state(row(metric, far, far, far), reference) == "as_null"
    assert state(row(metric, 2 - METRICS[metric].same * 3, 0, 2), reference) == "as_null"  # beyond the null


@pytest.mark.parametrize(
    ("ends", "expected"),
    [((0.30, 0.28, 0.32), "measured"), ((0.02, 0.01, 0.04), "measured"), ((0.15, 0.14, 0.16), "as_random"),
     ((0.2, 0.1, 0.3), "as_random"), ((0.21, 0.18, 0.32), "measured")],
)  # fmt: skip
def test_what_a_random_change_of_the_same_size_does_too(ends, expected):
    band = row("change_own" + RANDOM, 0.15, 0.1, 0.2, n=5)
    assert state(row("change_own", *ends), band) == expected
    one_draw = row("change_own" + RANDOM, ends[0], n=1)  # says nothing of where another would lie
    assert state(row("change_own", *ends), one_draw) == state(row("change_own", *ends)) == "measured"


def test_an_interval_that_was_not_given_is_for_few_prompts():
    assert state(row("change_own", 0.2)) == "too_few"
    assert state(row("curvature", 0.2, model=BASE)) == "too_few"
    assert state(row("delta_rel", 0.2, module="block", dataset="")) == "measured"  # of weights there is none to give


def test_no_value_has_one_word():
    empty = row("kl_answers", NAN, n=0)
    assert state(empty) == "not_defined"
    assert empty.as_record()["state"] == "not_defined"


@pytest.mark.parametrize("suffix", [NULL, PRECISION_FLOOR, RANDOM, SEEDS, ".seed1"])
def test_references_are_what_they_are(suffix):
    assert state(row("cka" + suffix, 1.0)) == "measured"


def test_what_comes_first_counts():
    """Below the floor no interval matters; without one, neither null nor random says anything."""
    band, null = row("cka" + RANDOM, 0.5, 0.0, 1.0), row("cka" + NULL, 0.5, 0.0, 0.9)
    assert state(row("cka", 0.5), floor("cka", 0.4), null, band) == "below_floor"
    assert state(row("cka", 0.5), null, band) == "too_few"
    assert state(row("cka", 0.5, 0.4, 0.6), null, band) == "as_null"
    assert state(row("cka", 0.95, 0.93, 0.97), null, band) == "as_random"


def test_states_do_not_hang_on_the_order_of_rows():
    rows = [row("change_own", 0.005, 0.004, 0.006), floor("change_increment", 0.01), row("cka", 0.9, 0.8, 1.0)]
    there, back = with_states(rows), with_states(rows[::-1])[::-1]
    assert there == back
    assert with_states(there) == there


@pytest.fixture(scope="module")
def data():
    return load_dataset("builtin:chain_sum", num_samples=10)


def states_of(base, tuned, data, tokenizer, **options):
    table = analyze(Pair.of_models(base, {"sft": tuned}, tokenizer), data, **{**SMALL, **options})
    return table, lambda metric: table.curve(metric, "sft").set_index("layer").state.to_dict()


def test_a_model_with_itself_is_different_nowhere(pico, tokenizer, data):
    base = pico("llama")
    table, found = states_of(base, copy.deepcopy(base), data, tokenizer)
    paired = [name for name in table.metrics if name in METRICS and METRICS[name].paired]
    assert len(paired) > 10
    assert {each for name in paired for each in found(name).values()} == {"below_floor"}


def test_a_planted_change_is_measured_where_it_is(pico, tokenizer, data):
    base = pico("llama", num_hidden_layers=BLOCKS)
    _, found = states_of(base, changed(base, [1, 2]), data, tokenizer)
    below, measured = "below_floor", "measured"
    assert found("change_own") == {0: below, 1: measured, 2: measured, 3: below}
    assert found("change_increment") == {-1: below, 0: below, 1: measured, 2: measured, 3: measured}
    assert set(found("kl_answers").values()) == {measured}


def test_a_change_that_bfloat16_swallows_is_measured_in_float32(pico, tokenizer, data):
    """The same small change of all weights, in float32 and in a copy of both models that runs in bfloat16."""
    base = pico("llama")
    tuned = changed(base, range(3), scale=3e-4)
    _, fine = states_of(base, tuned, data, tokenizer)
    assert set(fine("change_own").values()) == {"measured"}
    coarse_base, coarse = (copy.deepcopy(model).to(torch.bfloat16) for model in (base, tuned))
    _, found = states_of(coarse_base, coarse, data, tokenizer)
    assert set(found("change_own").values()) == {"below_floor"}
