import os
import sys
from contextlib import suppress

import pytest

from midblock.base import Progress, Silent, watched
from midblock.base.progress import Lines


@pytest.fixture
def log(tmp_path):
    with open(tmp_path / "log", "w+", encoding="utf-8") as stream:
        yield stream


def said(stream):
    stream.seek(0)
    return stream.read()


def test_all_kinds_are_progress(log):
    with watched(log) as lines:
        assert isinstance(lines, Progress)
    assert isinstance(Silent(), Progress)
    assert Silent().phase("x", 3)(3) is None


def test_lines_tell_begin_and_end(log):
    advance = Lines(log).phase("measuring", 4)
    for _ in range(4):
        advance(1)
    assert said(log) == "measuring …\nmeasuring: done in 0 s\n"


def test_lines_tell_the_share_when_it_takes_long(log):
    advance = Lines(log, seconds=0).phase("measuring", 4)
    advance(1)
    advance(2)
    assert said(log) == "measuring …\nmeasuring: 25%\nmeasuring: 75%\n"


def test_a_file_gets_lines_not_bars(log):
    with watched(log) as progress:
        progress.phase("loading", 1)(1)
    assert said(log).startswith("loading …\n")
    assert "\x1b" not in said(log)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a closed terminal forgets what it showed")
def test_a_terminal_gets_a_bar():
    reader, writer = os.openpty()
    with open(writer, "w", encoding="utf-8") as terminal, watched(terminal) as progress:
        assert isinstance(progress, Progress)
        progress.phase("loading", 2)(2)
    shown = b""
    with suppress(OSError):  # the end, on Linux
        while piece := os.read(reader, 4096):
            shown += piece
    os.close(reader)
    assert b"loading" in shown
    assert b"100%" in shown


TITLE = "measuring \x1b[31m[red]a\r\nb\u202e"


def test_a_title_moves_nothing(log):
    Lines(log).phase(TITLE, 1)(1)
    told = "measuring \\x1b[31m[red]a\\r\\nb\\u202e"
    assert said(log) == f"{told} …\n{told}: done in 0 s\n"
