"""What stands between a run and its user: streams that end, signals, bugs of ours, and the advice on how to go on."""

import errno
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from midblock.base.errors import MidblockError, NoSpaceError
from midblock.cli import main as door
from midblock.cli.main import Command, main
from midblock.cli.streams import Lasting, lasting
from midblock.runs.stopping import STOPPING, Stopped
from midblock.runs.verbs import VERBS


class Broken(io.StringIO):
    """A stream that a system call refuses."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


def test_a_reader_that_went_away_ends_nothing():
    stream = Lasting(Broken(errno.EPIPE))
    assert stream.write("x") == 1
    stream.flush()
    with pytest.raises(MidblockError, match="cannot print: No space"):
        Lasting(Broken(errno.ENOSPC)).write("x")


def test_what_an_encoding_lacks_is_escaped():
    buffer = io.BytesIO()
    stream = Lasting(io.TextIOWrapper(buffer, encoding="ascii"))
    stream.write("Δ\ud800")
    stream.flush()
    assert buffer.getvalue() == b"\\u0394\\ud800"


def test_the_streams_of_before_come_back():
    before = sys.stdout, sys.stderr
    with lasting():
        assert sys.stdout is not before[0]
    assert (sys.stdout, sys.stderr) == before


@pytest.fixture
def fails(monkeypatch, capsys):
    """Call the door with a verb that raises; give the exit code and the line."""

    def call(error, *arguments, kept=True):
        def run(self):
            self.verb = VERBS[self.arguments[0]]
            STOPPING.kept = kept
            self.overwrite, self.resume = "--overwrite" in self.arguments, "--resume" in self.arguments
            raise error

        monkeypatch.setattr(Command, "run", run)
        code = main(list(arguments))
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return code, captured.err.strip()

    return call


ON, INSTEAD = "; the same command with --resume goes on from here", "with --resume instead of --overwrite goes on"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped("stopped by SIGTERM", 143), NoSpaceError("no space")])
def test_the_advice_is_the_verbs_own(fails, error):
    code, line = fails(error, "analyze", "a", "b")
    assert line.endswith(ON)
    assert code == {"KeyboardInterrupt": 130, "Stopped": 143, "NoSpaceError": 2}[type(error).__name__]
    assert INSTEAD in fails(error, "tune", "a", "--overwrite")[1]
    assert fails(error, "swap", "a", "b", "--resume")[1].endswith("; the same command goes on from here")
    assert fails(error, "demo")[1].endswith("; the same command goes on from here")
    assert fails(error, "demo", "--overwrite")[1].endswith("; the same command without --overwrite goes on from here")
    for verb in ("merge", "export", "report"):
        assert "goes on" not in fails(error, verb)[1]
    for verb in ("analyze", "tune", "demo"):
        assert "goes on" not in fails(error, verb, kept=False)[1]


def test_of_several_processes_the_main_one_says_that_they_were_stopped(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(Command, "run", lambda self: (_ for _ in ()).throw(Stopped("stopped", 143)))
    assert main(["analyze"]) == 143
    assert capsys.readouterr().err == ""


def test_a_bug_of_ours_is_one_line_and_a_file(fails, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, line = fails(ZeroDivisionError("by\nzero"), "tune", "my model")
    assert code == 1
    found = re.fullmatch(r"midblock: a bug of ours: ZeroDivisionError: by zero \(please report it, with (.*)\)", line)
    text = Path(found[1]).read_text()
    assert "Traceback" in text
    assert "'my model'" in text
    assert '"torch"' in text


def test_a_message_is_one_line(fails):
    assert (
        fails(MidblockError("first\nsecond", hint="third\tfourth"), "tune")[1]
        == "midblock: first second (third fourth)"
    )
    assert fails(MemoryError(), "tune") == (2, "midblock: out of memory")


def test_what_the_system_refuses_is_no_bug_of_ours(fails):
    refused = PermissionError(errno.EACCES, "Permission denied", "/data")
    assert fails(refused, "tune") == (2, "midblock: cannot read or write /data: Permission denied")
    assert fails(FileNotFoundError(errno.ENOENT, "No such file", "/data"), "tune")[0] == 1


def test_sigterm_is_heeded_while_a_verb_runs(monkeypatch, capsys):
    monkeypatch.setattr(Command, "run", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["analyze"]) == 143
    assert capsys.readouterr().err == "midblock: stopped by SIGTERM\n"
    assert door.STOPPING.asked is False


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's pipes")
def test_pipes_and_encodings_from_outside():
    run = f"{sys.executable} -m midblock.cli.main"
    closed = subprocess.run(
        ["bash", "-c", f"{run} --help | true; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )
    assert (closed.stdout, closed.stderr) == ("0\n", "")
    if os.path.exists("/dev/full"):
        full = subprocess.run(["bash", "-c", f"{run} --help > /dev/full"], capture_output=True, text=True)
        assert (full.returncode, full.stderr) == (2, "midblock: cannot print: No space left on device\n")
    narrow = {**os.environ, "PYTHONIOENCODING": "ascii"}
    told = subprocess.run(["bash", "-c", f"{run} ünbekannt"], capture_output=True, text=True, env=narrow)
    assert told.returncode == 2
    assert "'\\xfcnbekannt'" in told.stderr
