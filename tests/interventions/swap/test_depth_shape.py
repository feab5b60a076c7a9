"""The shape of a swap's curve over depth: planted shapes are found, noise is not."""

import json
import math

import numpy as np
import pytest
import torch

from midblock.evaluation import TokenMean
from midblock.interventions.swap.depth_shape import depth_shape

PROMPTS, TOKENS = 40, 20


def curve_of(shares, noise=0.02, seed=0, prompts=PROMPTS):
    random = np.random.default_rng(seed)
    index, counts = torch.arange(prompts), torch.full((prompts,), TOKENS)
    return [
        TokenMean.of(index, torch.tensor(np.clip(share + noise * random.normal(size=prompts), 0, 1) * TOKENS), counts)
        for share in shares
    ]


SHAPES = {
    "inverted U": [0.2, 0.6, 0.7, 0.6, 0.3],
    "U": [0.7, 0.3, 0.2, 0.3, 0.6],
    "rising": [0.1, 0.3, 0.4, 0.5, 0.8],
    "falling": [0.8, 0.5, 0.4, 0.3, 0.1],
}
REVERSED = {"rising": "falling", "falling": "rising"}


@pytest.mark.parametrize("verdict", SHAPES)
def test_planted_shapes(verdict):
    curve = curve_of(SHAPES[verdict])
    found = depth_shape("base", "base_head", curve)
    assert found.verdict == verdict
    values = [each.value for each in curve]
    assert found.contrast == pytest.approx(np.mean(values[1:4]) - max(values[0], values[4]), abs=1e-12)
    assert found.low <= found.contrast <= found.high
    assert (found.low > 0) == (verdict == "inverted U")
    back = depth_shape("base", "base_head", curve[::-1])
    assert back.verdict == REVERSED.get(verdict, verdict)
    assert (back.contrast, back.low, back.high) == pytest.approx((found.contrast, found.low, found.high), abs=1e-12)


def test_noise_has_no_shape():
    verdicts = [depth_shape("a", "b", curve_of([0.5] * 5, 0.1, seed, prompts=20)).verdict for seed in range(15)]
    # two intervals of 95 %, each wrong once in twenty, must both be wrong
    assert verdicts.count("undecided") >= 13


@pytest.mark.parametrize(("points", "ends"), [(3, 1), (4, 1), (5, 1), (7, 1), (10, 2), (30, 6)])
def test_the_ends_are_the_outer_fifths(points, ends):
    shares = [0.0] * ends + [1.0] * (points - 2 * ends) + [0.0] * ends
    found = depth_shape("base", "tuned_head", curve_of(shares, noise=0))
    assert (found.contrast, found.low, found.high, found.verdict) == (1, 1, 1, "inverted U")


def test_the_better_end_is_what_the_middle_must_beat():
    found = depth_shape("base", "base_head", curve_of([0.0, 0.5, 0.5, 0.5, 0.5], noise=0))
    assert (found.contrast, found.verdict) == (0, "undecided")


def test_one_prompt_decides_nothing():
    found = depth_shape("base", "base_head", curve_of(SHAPES["inverted U"], prompts=1))
    assert found.verdict == "undecided"
    assert math.isnan(found.low)
    record = json.loads(json.dumps(found.as_record(), allow_nan=False))
    assert list(record) == ["host", "head", "metric", "contrast", "low", "high", "verdict"]
    assert (record["metric"], record["low"], record["high"]) == ("accuracy", None, None)
