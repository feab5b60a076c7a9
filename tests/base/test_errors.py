import pytest

from midblock.base import MidblockError, nearest, unknown


def test_the_hint_stands_behind_the_message():
    error = MidblockError("no model at x", hint="give a folder")
    assert str(error) == "no model at x (give a folder)"
    assert (error.what, error.hint) == ("no model at x", "give a folder")
    assert str(MidblockError("no model at x")) == "no model at x"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ckq", "cka"), ("CKA", "cka"), ("gini ", "Gini"), ("effectiv_rank", "effective_rank"), ("zzz", None), ("", None)],
)
def test_nearest(name, expected):
    assert nearest(name, ["cka", "Gini", "effective_rank"]) == expected


def test_nearest_of_nothing():
    assert nearest("cka", []) is None


def test_an_unknown_name_gets_the_nearest_or_all():
    close = unknown("metric", "curvatur", ["curvature", "gini"])
    assert str(close) == "unknown metric 'curvatur' (did you mean 'curvature'?)"
    assert str(unknown("metric", "zzz", iter(["b", "a"]))) == "unknown metric 'zzz' (one of: a, b)"
