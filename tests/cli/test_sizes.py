"""Sizes that nothing can have are refused before anything is made of them."""

from dataclasses import fields

import pytest

from midblock.analysis import AnalysisSettings
from midblock.base import MidblockError
from midblock.data import load_dataset
from midblock.interventions import ProbeSettings, SwapSettings
from midblock.interventions.steer.settings import SteerSettings
from midblock.studies.study.settings import StudySettings
from midblock.tuning import FlowSettings, TuneSettings

SETTINGS = (AnalysisSettings, ProbeSettings, SwapSettings, SteerSettings, TuneSettings, FlowSettings, StudySettings)
COUNTS = [(cls, field.name) for cls in SETTINGS for field in fields(cls) if str(field.type).startswith("int")]


def test_the_options_are_found():
    assert len(COUNTS) > 30
    assert {name for _, name in COUNTS} > {"num_samples", "seeds", "max_length", "sketch_size", "rank_budget", "depth"}


@pytest.mark.parametrize(("settings", "name"), COUNTS)
@pytest.mark.parametrize(
    "value", [10**19, 10**400, 10**5000, -(10**19), -(10**5000)], ids=lambda value: value.bit_length()
)
def test_no_count_is_beyond_counting(settings, name, value):
    with pytest.raises(MidblockError, match=rf"^{name} is ") as raised:
        settings(**{name: value})
    assert len(str(raised.value)) < 120


@pytest.mark.parametrize(("settings", "name"), [(cls, name) for cls, name in COUNTS if name != "seed"])
def test_a_million_million_is_too_much(settings, name):
    with pytest.raises(MidblockError, match=rf"{name} is 1000000000000; it must be at most 2\^31"):
        settings(**{name: 10**12})


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (AnalysisSettings, {"lens_positions": 4097}, "lens_positions is 4097; it must be at most 4,096"),
        (AnalysisSettings, {"seeds": 101}, "seeds is 101; it must be at most 100"),
        (AnalysisSettings, {"seeds": 2, "num_samples": 500_001}, "2 samples of 500001 prompts are more than 1,000,000"),
        (SteerSettings, {"random_draws": 1001}, "random_draws is 1001; it must be at most 1,000"),
        (TuneSettings, {"rank_budget": 0}, "rank_budget is 0; it must be 1 or more"),
        (SwapSettings, {"segments": "9" * 5000}, "segments is '9{60}…'"),
        (TuneSettings, {"anchor": "rpsft", "anchor_k": "9" * 5000}, "anchor_k is '9{60}…'"),
    ],
)
def test_what_costs_more_than_it_tells(settings, options, message):
    with pytest.raises(MidblockError, match=message):
        settings(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 10**6 + 1}, "gives at most 1,000,000 questions; 1000001 samples were asked for"),
        ({"num_samples": 1, "skip": 10**6}, "1 samples after skipping 1000000 were asked for"),
        ({"num_samples": 10**5000}, r"10\^5000 samples are more than any dataset has"),
        ({"num_samples": -(10**5000)}, r"cannot draw -10\^5000 samples"),
    ],
)
def test_no_endless_draw(options, message):
    with pytest.raises(MidblockError, match=message):
        load_dataset("builtin:chain_sum", **options)


@pytest.mark.parametrize("content", ["num_samples: " + "9" * 5000, "a: " + "[" * 5000, "num_samples: 2001-99-99"])
def test_numbers_and_depths_of_a_config_file(content, tmp_path, failure):
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    assert "settings.yaml" in failure("analyze", "a", "b", "--config", path)
