"""The training log as columns: what is broken is skipped, what is long shortened, what is noisy smoothed."""

import json
import math

import numpy as np
import pytest

from midblock.report.page.amounts import count, duration, share, size
from midblock.report.page.bars import Bar, bar_list
from midblock.report.read.training_log import Log, averaged, groups, smoothed


def log_of(*lines: dict) -> Log:
    return Log.parse(json.dumps(line) for line in lines)


def test_broken_lines_are_skipped_and_repeated_steps_count_once():
    text = '{"step": 2, "loss": 5}\nnonsense\n[1]\n{"loss": 1}\n{"step": true}\n{"step": 1, "loss": 3}\n'
    log = Log.parse((text + '{"step": 2, "loss": 4}\n{"step": 3, "lo').splitlines())
    assert log.steps == [1, 2]
    assert log.column("loss").tolist() == [3, 4]


def test_what_is_no_number_is_missing():
    log = log_of({"step": 1, "loss": math.nan}, {"step": 2, "loss": "x"}, {"step": 3, "loss": True}, {"step": 4})
    assert np.isnan(log.column("loss")).all()
    assert not log.has("loss")


def test_places_run_from_the_embedding_to_the_head():
    log = log_of({"step": 1, "gradient_by_block": {"10": 1.0, "head": 2.0, "9": 3.0, "-1": 4.0, "11": math.inf}})
    assert log.places == ["embedding", "9", "10", "head"]
    assert log.gradient("embedding").tolist() == [4.0]


def test_speed_is_a_difference_and_survives_a_resumed_clock():
    pairs = [(100, 1.0), (300, 2.0), (900, 4.0), (50, 0.5), (150, 1.0)]
    log = log_of(*({"step": i, "tokens": t, "seconds": s} for i, (t, s) in enumerate(pairs)))
    np.testing.assert_array_equal(log.speed, [np.nan, 200, 300, np.nan, 200])


@pytest.mark.parametrize("length", [0, 1, 7, 10, 11, 95, 1200])
def test_groups_cover_everything_once(length):
    parts = groups(length, 10)
    assert len(parts) <= 10
    assert [i for part in parts for i in range(length)[part]] == list(range(length))


def test_means_leave_out_what_is_missing():
    values = np.array([1.0, 3.0, np.nan, 5.0, np.nan, np.nan])
    np.testing.assert_array_equal(averaged(values, groups(6, 3)), [2.0, 5.0, np.nan])


def test_smoothing_keeps_lines_in_the_middle_and_quiets_noise():
    ramp = np.linspace(2, 1, 400)
    np.testing.assert_allclose(smoothed(ramp)[50:-50], ramp[50:-50], atol=1e-6)
    noise = np.random.default_rng(0).normal(size=2000)
    # a Gaussian of width s leaves 1 / (2 s √π) of white noise's variance
    assert smoothed(noise)[200:-200].var() == pytest.approx(1 / (2 * 40 * math.pi**0.5), rel=0.5)


def test_smoothing_leaves_gaps_and_short_curves_alone():
    short = np.arange(5.0)
    np.testing.assert_array_equal(smoothed(short), short)
    holed = np.ones(50)
    holed[20] = np.nan
    np.testing.assert_array_equal(np.isnan(smoothed(holed)), np.isnan(holed))


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (count(0), "0"), (count(999), "999"), (count(802816), "802.8 K"), (count(134515008), "134.5 M"),
        (count(None), "–"),
        (size(512), "512 B"), (size(538060032), "513.1 MiB"), (size(2**31), "2 GiB"), (size(float("nan")), "–"),
        (duration(12.34), "12.3 s"), (duration(272), "4 min 32 s"), (duration(59.96), "1 min 00 s"),
        (duration(3600 * 3 + 305), "3 h 05 min"), (duration("x"), "–"),
        (share(1, 200), "0.5 %"), (share(9999, 10000), "99.9 %"), (share(5, 5), "100 %"), (share(1, 0), ""),
    ],
)  # fmt: skip
def test_amounts_for_people(said, text):
    assert said.replace("\u00a0", " ") == text


def test_bars_share_a_scale_and_escape():
    html = bar_list([Bar("a<b", 1.0, "1"), Bar("c", 4.0, "4", strong=True), Bar("d", math.nan, "–")])
    assert "a&lt;b" in html
    assert [part.split("%")[0] for part in html.split("width:")[1:]] == ["25.00", "100.00", "0.00"]
    assert bar_list([Bar("zero", 0.0, "0")]).count("width:0.00%") == 1
