import inspect
from dataclasses import fields
from pathlib import Path

import pytest

from midblock.base import MidblockError, Silent, divide
from midblock.runs.reading import DataSettings
from midblock.runs.where import Where


def test_resume_and_overwrite_exclude_each_other():
    with pytest.raises(MidblockError, match="exclude each other"):
        Where(resume=True, overwrite=True)


def test_a_folder_in_the_home_is_found():
    assert Where(output_dir="~/run").folder == Path.home() / "run"
    assert Where().folder is None


def test_a_verb_may_want_a_folder(tmp_path):
    assert Where(output_dir=tmp_path).needed("tune") == tmp_path
    with pytest.raises(MidblockError, match=r"tune wants a folder to write \(output_dir\)"):
        Where().needed("tune")


def test_it_is_taken_out_of_keyword_arguments():
    progress = Silent()
    given = {"output_dir": "run", "num_samples": 8, "progress": progress, "command": "midblock x"}
    where, data = divide(given, Where, DataSettings)
    assert where == Where(output_dir="run", progress=progress, command="midblock x")
    assert data == DataSettings(num_samples=8)


def test_every_field_says_what_it_is():
    source = inspect.getsource(Where)
    for field in fields(Where):
        assert f"    {field.name}:" in source
        assert '"""' in source.partition(f"    {field.name}:")[2].partition("\n\n")[0]
