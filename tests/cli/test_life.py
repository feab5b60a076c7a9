"""What a command cannot show: the user's to mend where the files lay there before, else a bug of ours."""

import json
import re
import tempfile
from pathlib import Path

import pytest

from midblock.base import write_json
from midblock.base.errors import MidblockError
from midblock.cli import merge as door
from midblock.cli.life import Filled, tell, whole
from midblock.cli.main import main

from ..pins.verbs import sketched

MERGE = ["merge", "start", "sft", "--alphas", "0,0.5,1", "-o", "run"]


@pytest.fixture(autouse=True)
def unpainted():
    with sketched():
        yield


@pytest.fixture
def crashes(tmp_path, monkeypatch):
    """Where crash files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "crashes"))
    (tmp_path / "crashes").mkdir()
    return tmp_path / "crashes"


def without(folder, key):
    """Take what is shown out of a summary."""
    summary = json.loads((folder / "summary.json").read_text())
    del summary[key]
    write_json(folder / "summary.json", summary)


def test_files_changed_since_are_the_users_to_mend(here, capfd, failure, crashes):
    assert main(MERGE) == 0
    assert main([*MERGE, "--resume"]) == 0  # told again as it is
    without(here / "run", "copied")
    line = failure(*MERGE, "--resume")
    assert "the files in run are not what this command leaves (KeyError: 'copied')" in line
    assert "--overwrite" in line
    assert not list(crashes.iterdir())


def test_what_the_command_wrote_and_cannot_show_is_ours(here, capfd, crashes, monkeypatch):
    merge = door.run_merge

    def careless(*arguments, output_dir, **options):
        """A verb with a bug: its summary lacks what its command line shows."""
        found = merge(*arguments, output_dir=output_dir, **options)
        without(Path(output_dir), "copied")
        return found

    monkeypatch.setattr(door, "run_merge", careless)
    for asked in ([], ["--overwrite"]):
        assert main([*MERGE, *asked]) == 1
        said = capfd.readouterr().err.splitlines()[-1]
        (file,) = crashes.iterdir()
        assert re.fullmatch(rf"midblock: a bug of ours: KeyError: 'copied' \(please report it, with {file}\)", said)
        assert 'summary["copied"]' in file.read_text()
        file.unlink()


@pytest.mark.parametrize(
    "error", [AttributeError("x"), IndexError("x"), KeyError("x"), TypeError("x"), ValueError("x")]
)
def test_only_what_was_read_back_is_excused(here, error):
    assert main(MERGE) == 0

    def show(console):
        raise error

    with pytest.raises(type(error)):
        tell(Filled(here / "run", read_back=False), as_json=False, show=show)
    with pytest.raises(MidblockError, match="not what this command leaves"):
        tell(Filled(here / "run", read_back=True), as_json=False, show=show)


@pytest.mark.parametrize(
    ("record", "there"),
    [('{"status": "done"}', True), ('{"status": "running"}', False), ("[", False), ("[]", False), (None, False)],
)
def test_a_run_is_whole_where_its_record_says_so(tmp_path, record, there):
    if record is not None:
        (tmp_path / "run.json").write_text(record)
    assert whole(tmp_path) is there


@pytest.mark.parametrize("name", ["a\0b", "n" * 5000, "a\udcff", ""])
def test_names_that_no_folder_has_hold_no_run(tmp_path, name):
    assert not whole(tmp_path / name)
