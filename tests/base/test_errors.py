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


def test_an_unknown_name_among_many_gets_the_nearest_few_and_where_the_list_is():
    many = [f"metric_of_sort_{n}" for n in range(60)]
    said = str(unknown("metric", "zzz", many, listed="docs/metrics.md"))
    assert said.startswith("unknown metric 'zzz' (such as ")
    assert said.endswith("; docs/metrics.md lists all 60)")
    assert said.count("metric_of_sort_") == 4
    assert str(unknown("metric", "zzz", many)).endswith("; there are 60)")


def test_an_empty_name_is_called_empty():
    assert str(unknown("task", " ", ["b", "a"])) == "the name of the task is empty (one of: a, b)"
