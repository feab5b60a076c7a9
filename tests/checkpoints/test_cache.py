import subprocess
import sys

import pytest

from midblock.base import MidblockError
from midblock.checkpoints.cache import cache_root, folder_once

RACE = """
import sys, time, os
from midblock.checkpoints.cache import folder_once
def fill(folder):
    with open(sys.argv[1], "a") as log:
        log.write("filled\\n")
    (folder / "a").write_text("a")
    time.sleep(0.5)
    (folder / "b").write_text("b")
folder = folder_once("kind/thing", fill)
assert sorted(os.listdir(folder)) == ["a", "b"]
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIDBLOCK_CACHE", str(tmp_path / "cache"))


def test_where(tmp_path, monkeypatch):
    assert cache_root() == tmp_path / "cache"
    monkeypatch.delenv("MIDBLOCK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "midblock"


def test_filled_once():
    calls = []
    first = folder_once("kind/thing", calls.append)
    assert first.is_dir()
    assert folder_once("kind/thing", calls.append) == first
    assert len(calls) == 1


def test_a_failure_leaves_nothing_and_stale_halves_are_cleared(tmp_path):
    def fail(folder):
        (folder / "half").touch()
        raise MidblockError("no")

    with pytest.raises(MidblockError, match="no"):
        folder_once("thing", fail)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []
    (tmp_path / "cache" / ".thing.partial").mkdir()
    (tmp_path / "cache" / ".thing.partial" / "half").touch()
    assert list(folder_once("thing", lambda folder: None).iterdir()) == []


def test_racing_processes_fill_once(tmp_path):
    command = [sys.executable, "-c", RACE, str(tmp_path / "log")]
    running = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "filled\n"


def test_unwritable_cache(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MIDBLOCK_CACHE", str(tmp_path / "file"))
    with pytest.raises(MidblockError, match="MIDBLOCK_CACHE"):
        folder_once("thing", lambda folder: None)
