from dataclasses import dataclass

import pytest

from midblock.base import MidblockError, from_options


@dataclass(frozen=True)
class Settings:
    seed: int = 0


def test_options_become_settings_and_a_typo_is_named():
    assert from_options(Settings, {"seed": 3}) == Settings(3)
    with pytest.raises(MidblockError, match=r"unknown option 'sead' \(did you mean 'seed'"):
        from_options(Settings, {"sead": 3})
