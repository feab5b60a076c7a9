from dataclasses import dataclass

import pytest

from midblock.base import MidblockError, divide, from_options


@dataclass(frozen=True)
class Settings:
    seed: int = 0


def test_options_become_settings_and_a_typo_is_named():
    assert from_options(Settings, {"seed": 3}) == Settings(3)
    with pytest.raises(MidblockError, match=r"unknown option 'sead' \(did you mean 'seed'"):
        from_options(Settings, {"sead": 3})


@dataclass(frozen=True)
class Place:
    folder: str = ""


def test_options_are_divided_and_a_typo_is_named_from_all():
    assert divide({"folder": "here", "seed": 3}, Place, Settings) == (Place("here"), Settings(3))
    assert divide({}, Settings, Place) == (Settings(), Place())
    with pytest.raises(MidblockError, match=r"unknown option 'foldr' \(did you mean 'folder'"):
        divide({"seed": 3, "foldr": "here"}, Place, Settings)
