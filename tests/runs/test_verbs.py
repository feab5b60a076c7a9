import inspect
from importlib import import_module

import pytest

import midblock
from midblock.runs.verbs import VERBS


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_is_a_function_of_its_name_at_home(name):
    function = getattr(import_module(VERBS[name].home), "write_report" if name == "report" else name)
    assert callable(function)
    assert inspect.getdoc(function)


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_has_a_door(name):
    assert callable(getattr(import_module(f"midblock.cli.{name}"), name))


def test_the_face_has_every_verb():
    assert {name for name in VERBS if name != "report"} <= set(midblock.__all__)


def test_only_what_fills_a_folder_is_resumed():
    assert all(verb.fills for verb in VERBS.values() if verb.resumable)
