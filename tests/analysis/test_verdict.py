"""Whether the evidence says where: planted leads are told, what intervals, rounding or random changes cover is not."""

import json

import pytest

from midblock.analysis.detectable import detectable, in_words
from midblock.analysis.states import with_states
from midblock.analysis.summary import summarize
from midblock.analysis.verdict import Verdict
from midblock.base import LayerRow, LayerTable
from midblock.base.names import BASE
from midblock.metrics.metric import PRECISION_FLOOR, RANDOM

L = 6
CLEAR = [1, 1, 5, 6, 1, 1]


def own(values, half=0.1, metric="change_own", model="sft", **more):
    each = zip(values, half if isinstance(half, list) else [half] * len(values), strict=True)
    return [LayerRow(model, i, L, metric, v, 20, v - h, v + h, **more) for i, (v, h) in enumerate(each)]


def table_of(*rows):
    return LayerTable.from_rows(with_states([row for group in rows for row in group]))


def verdict(*rows):
    return Verdict.of(table_of(*rows), "sft")


def test_a_clear_lead_is_told():
    assert verdict(own(CLEAR)) == Verdict("", peak=True)


def test_a_third_that_leads_by_less_than_the_intervals_is_not_told():
    found = verdict(own([1, 1, 3, 3, 2.7, 2.7], half=0.5))
    assert "leads by less than the intervals" in found.why_not
    assert not verdict(own([1, 1, 3, 3, 2.7, 2.7], half=0.05)).why_not


def test_a_block_that_leads_by_less_than_the_intervals_is_not_named():
    near = [1, 1, 5, 5.1, 1, 1]
    assert verdict(own(near)) == Verdict("", peak=False)
    assert verdict(own(near, half=0.01)).peak
    text = summarize(table_of(own(near)))["headline"]
    assert text == "sft's tuning acts most in the middle third (72 %)."


def test_an_even_change_is_even_however_wide_the_intervals():
    assert not verdict(own([1.0] * L, half=0.9)).why_not


def test_nothing_above_the_floor_is_not_placed():
    found = verdict(own(CLEAR), own([9.0] * L, metric="change_increment" + PRECISION_FLOOR, model=BASE))
    assert found.why_not == "what blocks change of their own is no more than rounding makes"
    some = verdict(own(CLEAR), own([4.0] * L, metric="change_increment" + PRECISION_FLOOR, model=BASE))
    assert not some.why_not


def test_what_random_changes_do_too_is_not_placed():
    found = verdict(own(CLEAR), own(CLEAR, half=0.5, metric="change_own" + RANDOM))
    assert found.why_not == "what blocks change of their own is no other than a random change of the same size"
    other = own([20.0] * L, metric="change_own" + RANDOM)
    assert not verdict(own(CLEAR), other).why_not


def test_a_leading_third_must_be_told_apart_itself():
    """Blocks 0 and 1 change less than a random change of the same size does; the leading third is no other than it."""
    random = [*own([9, 9], metric="change_own" + RANDOM), *own(CLEAR, half=0.5, metric="change_own" + RANDOM)[2:]]
    found = verdict(own(CLEAR), random)
    assert found.why_not == (
        "what blocks of the leading third change of their own is no other than a random change of the same size"
    )
    one = [row for row in random if row.layer != 2]
    assert verdict(own(CLEAR), one) == Verdict("", peak=False)  # block 3 leads, and is as random
    assert verdict(own(CLEAR), [row for row in random if row.layer != 3]) == Verdict("", peak=True)


def test_a_model_that_did_not_change_needs_no_verdict():
    assert verdict(own([0.0] * L, half=0.0)) == Verdict()
    assert verdict(own(CLEAR, metric="change_increment")) == Verdict()


def test_without_intervals_a_place_is_told_with_that():
    found = verdict(own(CLEAR, half=float("nan")))
    assert (found.why_not, found.bare) == ("", True)
    assert summarize(table_of(own(CLEAR, half=float("nan"))))["headline"].endswith(
        " Prompts are too few for intervals."
    )


def test_the_headline_says_that_the_evidence_does_not():
    floor = own([9.0] * L, metric="change_increment" + PRECISION_FLOOR, model=BASE)
    weights = [LayerRow("sft", i, L, "delta_rel", v, 9, module="block") for i, v in enumerate([0, 0, 0, 0, 1, 1])]
    summary = summarize(table_of(own(CLEAR), floor, weights))
    assert summary["headline"] == (
        "The evidence does not say where sft's tuning acts (what blocks change of their own is no more than rounding "
        "makes); its weights moved most in the upper third (100 %), most in block 4."
    )
    facts = summary["models"][0]
    assert facts["evidence"] == {
        "says_where": False,
        "why_not": "what blocks change of their own is no more than rounding makes",
        "one_block_leads": False,
    }
    assert facts["states"] == {"change_own": {"below_floor": L}, "delta_rel": {"measured": L}}
    json.dumps(summary, allow_nan=False)


def test_of_several_models_each_has_its_verdict():
    both = table_of(own(CLEAR), own([1, 1, 3, 3, 2.7, 2.7], half=0.5, model="dpo"))
    assert summarize(both)["headline"] == (
        "Where the change gathers: sft most in the middle third (73 %); dpo not told by the evidence."
    )


@pytest.mark.parametrize(("floor", "rounding", "expected"), [(0.05, 1.0, 0.1), (0.3, 1.0, 0.3), (0.3, 2.0**-16, 0.1)])
def test_the_smallest_difference_is_the_interval_or_the_floor(floor, rounding, expected):
    table = table_of(own(CLEAR), own([floor] * L, metric="change_increment" + PRECISION_FLOOR, model=BASE))
    assert detectable(table, "sft", rounding) == pytest.approx({"change_own": expected})


def test_a_similarity_is_told_by_how_far_it_falls():
    floor = own([0.98] * L, metric="cka_debiased" + PRECISION_FLOOR, model=BASE)
    cut = [LayerRow("sft", i, L, "cka_debiased", 0.999, 20, 0.99, 1.0) for i in range(L)]
    assert detectable(table_of(cut), "sft") == pytest.approx({"cka_debiased": 0.009})
    assert detectable(table_of(cut, floor), "sft") == pytest.approx({"cka_debiased": 0.02})
    kl = [LayerRow("sft", L, L, "kl_answers", 0.5, 20, 0.4, 0.7)]
    found = detectable(table_of(cut, kl), "sft")
    assert in_words(found) == (
        "Smallest difference that could have been detected: cka_debiased 0.009, kl_answers 0.2 nats."
    )


def test_without_an_interval_nothing_is_known():
    assert detectable(table_of(own(CLEAR, half=float("nan"))), "sft") == {}
    assert in_words({}) == ""
