import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from midblock.base import MidblockError
from midblock.checkpoints import LoadSettings, load_model, open_checkpoint
from midblock.data import load_dataset
from midblock.evaluation import MatchResult, compare, exact_interval, exact_match, wilson
from midblock.evaluation.exact_match import paired_interval


def result(pattern, reader="exact"):
    """A result that is right where the pattern has a 1."""
    answers = tuple("yes" if mark == "1" else None for mark in pattern)
    return MatchResult(reader, tuple(answer or "" for answer in answers), answers, ("yes",) * len(pattern))


def test_a_model_that_knows_the_answers_gets_them_right(pico, tokenizer, answered, example_set, fit):
    model = pico("llama")
    examples = example_set(
        answered("How many?", "3 + 4 = 7\n#### 7", answer="7.0"),
        answered("She has", "3.0 apples\n#### 3", answer="3"),
        answered("apples", "#### 4", answer="4"),
    )
    fit(model, tokenizer, examples, steps=100)
    wrong = example_set(*examples.examples[:2], answered("apples", "#### 4", answer="9"))
    found = exact_match(model, tokenizer, wrong, max_new_tokens=60)
    assert found.outputs == ("3 + 4 = 7\n#### 7", "3.0 apples\n#### 3", "#### 4")
    assert (found.reader, found.answers, found.expected) == ("gsm8k", ("7", "3", "4"), ("7", "3", "9"))
    assert found.correct.tolist() == [True, True, False]
    assert found.accuracy == 2 / 3
    assert found.n == 3
    assert (found.low, found.high) == exact_interval(2, 3)
    assert found.unlike_training == ()
    # Word for word, "3 + 4 = 7\n#### 7" is no "7.0".
    assert exact_match(model, tokenizer, wrong, reader="exact", max_new_tokens=60).accuracy == 0
    merged = example_set(answered("How many app", "les", ""))
    assert exact_match(model, tokenizer, merged, max_new_tokens=2).unlike_training == (0,)


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (3, 7), (150, 200), (1, 1)])
def test_wilson_is_its_formula(right, n):
    z = 1.959963984540054
    share = right / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert wilson(right, n) == pytest.approx((centre - half, centre + half), abs=1e-12)


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (3, 7), (150, 200), (1, 1)])
def test_the_interval_of_a_share_is_scipys_exact_one(right, n):
    expected = binomtest(right, n).proportion_ci(0.95, method="exact")
    assert exact_interval(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.lists(st.sampled_from(["00", "01", "10", "11"]), min_size=2, max_size=40))
def test_mcnemar_is_its_sum_of_binomials(pairs):
    a, b = result([pair[0] for pair in pairs]), result([pair[1] for pair in pairs])
    found = compare(a, b)
    only_a, only_b = pairs.count("10"), pairs.count("01")
    split = only_a + only_b
    tail = sum(math.comb(split, k) for k in range(min(only_a, only_b) + 1)) / 2**split
    assert found.p == pytest.approx(min(1.0, 2 * tail), abs=1e-12)
    assert (found.only_a, found.only_b, found.n) == (only_a, only_b, len(pairs))
    assert found.difference == pytest.approx(b.accuracy - a.accuracy, abs=1e-12)
    assert found.low <= found.difference <= found.high
    back = compare(b, a)
    assert (back.difference, back.p) == (-found.difference, found.p)


def test_pairing_narrows_the_interval_of_a_difference():
    """Against the normal approximation, which 400 prompts come close to."""
    a, b = result("1" * 100 + "0" * 300), result("1" * 90 + "0" * 10 + "1" * 60 + "0" * 240)
    found = compare(a, b)
    difference = b.correct.double() - a.correct.double()
    error = float(difference.std(correction=0)) / math.sqrt(400)
    assert found.low == pytest.approx(found.difference - 1.96 * error, abs=0.005)
    assert found.high == pytest.approx(found.difference + 1.96 * error, abs=0.005)
    unpaired = math.sqrt(a.accuracy * (1 - a.accuracy) / 400 + b.accuracy * (1 - b.accuracy) / 400)
    assert found.high - found.low < 2 * 1.96 * unpaired


def test_that_nothing_changed_in_four_prompts_proves_little():
    found = compare(result("1101"), result("1101"))
    assert (found.difference, found.p) == (0, 1)
    assert found.low == pytest.approx(-found.high)
    assert found.high > 0.3


def test_only_the_same_questions_compare():
    with pytest.raises(MidblockError, match="not about the same questions"):
        compare(result("11"), result("110"))
    with pytest.raises(MidblockError, match="not about the same questions"):
        compare(result("11"), result("11", "first_line"))


def test_mistakes_are_named(pico, tokenizer, answered, example_set):
    model = pico("llama")
    words = example_set(answered("q", "7"), answered("q", "seven"))
    with pytest.raises(MidblockError, match="sample 1: last_number reads no answer from 'seven'"):
        exact_match(model, tokenizer, words, reader="last_number")
    with pytest.raises(MidblockError, match="gsm8k"):
        exact_match(model, tokenizer, words, reader="gsm8")
    with pytest.raises(MidblockError, match="no prompts were answered"):
        exact_interval(0, 0)


@pytest.mark.embedded
def test_the_embedded_model_is_scored_on_what_it_says():
    pytest.importorskip("reasoning_gym")
    checkpoint = open_checkpoint("builtin:smollm2-135m-instruct")
    model = load_model(checkpoint, LoadSettings(device="cpu"))
    examples = load_dataset("builtin:gsm_symbolic", num_samples=3)
    found = exact_match(model, checkpoint.tokenizer(), examples, max_new_tokens=12)
    # It says "The answer is …", without the mark it was never taught.
    assert found.outputs[0].strip() == "A: The answer is 20."
    assert found.answers[0] == "20"
    assert found.correct[0]
    assert torch.equal(
        found.correct, torch.tensor([a == b for a, b in zip(found.answers, found.expected, strict=True)])
    )


def test_the_interval_of_a_change_in_exact_match():
    before = torch.tensor([True] * 24 + [True] * 6 + [False] * 12 + [False] * 8)
    after = torch.tensor([True] * 24 + [False] * 6 + [True] * 12 + [False] * 8)
    low, high = paired_interval(before, after)
    assert low < 0.12 < high
    back = paired_interval(after, before)
    assert back == pytest.approx((-high, -low))
    # nothing right before or after: no change was seen, but five prompts prove little
    none = torch.zeros(5, dtype=torch.bool)
    assert paired_interval(none, none) == pytest.approx((-(wilson(0, 5)[1]), wilson(0, 5)[1]))
    # of prompts that are independent it is nearly Wilson's of each, added in quadrature
    one = torch.tensor([True, True, False, False] * 25)
    other = torch.tensor([True, False, True, False] * 25)
    half = wilson(50, 100)[1] - 0.5
    assert paired_interval(one, other) == pytest.approx((-half * 2**0.5, half * 2**0.5), abs=1e-6)
