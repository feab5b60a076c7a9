"""One process at a time, whoever it is and however the one before it ended."""

import json
import os
import signal
import subprocess
import sys

import pytest

from midblock.base import MidblockError
from midblock.runs.lock import LOCK, held, occupied

HOLDING = """
import sys, time
from pathlib import Path
from midblock.runs.lock import held
with held(Path(sys.argv[1]), beside=len(sys.argv) > 2):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a folder until it is killed."""
    started = []

    def start(*words):
        command = [sys.executable, "-c", HOLDING, str(tmp_path / "run"), *words]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_process_hears_of_the_first_and_takes_over_from_a_dead_one(tmp_path, holder):
    first = holder()
    with pytest.raises(MidblockError, match=rf"run is being written by process {first.pid} on ") as refused:  # noqa: SIM117
        with held(tmp_path / "run"):
            pass
    assert "\n" not in str(refused.value)
    (tmp_path / "run" / ".layers.csv.1.tmp").write_text("half")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    with held(tmp_path / "run"):
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
        assert json.loads((tmp_path / "run" / LOCK).read_text())["process"] == os.getpid()
    assert not list((tmp_path / "run").iterdir())


def test_a_place_beside_which_the_lock_lies(tmp_path, holder):
    holder("beside")
    with pytest.raises(MidblockError, match="is being written by process"), held(tmp_path / "run", beside=True):
        pass
    (tmp_path / ".other.7.partial").mkdir()
    with held(tmp_path / "other", beside=True):
        assert not (tmp_path / ".other.7.partial").exists()
    assert [path.name for path in tmp_path.iterdir()] == [f".run{LOCK}"]


def test_what_was_put_into_the_folder_stays(tmp_path):
    with held(tmp_path / "deep" / "run"):
        (tmp_path / "deep" / "run" / "run.json").write_text("{}")
    assert [path.name for path in (tmp_path / "deep" / "run").iterdir()] == ["run.json"]


def test_an_error_lets_go(tmp_path):
    with pytest.raises(ValueError, match="bug"), held(tmp_path / "run"):
        raise ValueError("bug")
    assert not (tmp_path / "run").exists()


def test_a_lock_says_what_it_can(tmp_path, holder):
    holder()
    (tmp_path / "run" / LOCK).write_text("nonsense")
    with pytest.raises(MidblockError, match="is being written by another process"), held(tmp_path / "run"):
        pass


def test_a_folder_is_occupied_by_what_is_not_passing(tmp_path):
    assert not occupied(tmp_path / "nowhere")
    (tmp_path / LOCK).write_text("")
    (tmp_path / ".run.json.12.tmp").write_text("")
    assert not occupied(tmp_path)
    (tmp_path / "mine.txt").write_text("")
    assert occupied(tmp_path)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MidblockError, match=r"cannot write .*Permission denied"), held(tmp_path):
        pass
    tmp_path.chmod(0o700)
