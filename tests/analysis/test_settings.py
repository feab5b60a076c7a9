from dataclasses import FrozenInstanceError

import pytest

from midblock.analysis.settings import AnalysisSettings
from midblock.base import MidblockError, from_options


def test_defaults_are_the_papers_sampling():
    settings = AnalysisSettings()
    assert (settings.num_samples, settings.num_token_samples, settings.max_length) == (200, 50, 128)
    assert (settings.region, settings.template) == ("all", "raw")


def test_settings_stay_as_they_are():
    with pytest.raises(FrozenInstanceError):
        AnalysisSettings().seed = 1  # type: ignore[misc]


def test_keywords_become_settings():
    assert from_options(AnalysisSettings, {"num_samples": 30, "metrics": "cka"}) == AnalysisSettings(
        num_samples=30, metrics="cka"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_sample": 30}, "unknown option 'num_sample'.*'num_samples'"),
        ({"metrics": "ckaa"}, "unknown metric 'ckaa'.*'cka'"),
        ({"metrics": ""}, r"metrics is empty \(`standard`, `p1`, `all`, or names of docs/metrics\.md"),
        ({"metrics": "cka,"}, "metrics names an empty one"),
        ({"metrics": "xqzw"}, r"^unknown metric 'xqzw' \(such as [^;]{1,120}; docs/metrics\.md lists all"),
        ({"region": "answers"}, "unknown region 'answers'.*'answer'"),
    ],
)
def test_unknown_names_raise_with_the_nearest(options, message):
    with pytest.raises(MidblockError, match=message):
        from_options(AnalysisSettings, options)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("num_samples", 4),
        ("num_token_samples", 0),
        ("max_length", 3),
        ("batch_tokens", 1),
        ("lens_positions", 1),
        ("subspace_rank", 1),
    ],
)
def test_numbers_have_a_least_value(name, least):
    assert getattr(from_options(AnalysisSettings, {name: least}), name) == least
    with pytest.raises(MidblockError, match=f"{name} is {least - 1}; it must be {least} or more"):
        from_options(AnalysisSettings, {name: least - 1})


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_dropout_drops_some_and_leaves_some(rate):
    with pytest.raises(MidblockError, match="token_dropout"):
        AnalysisSettings(token_dropout=rate)
