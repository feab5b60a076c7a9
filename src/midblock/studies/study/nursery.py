"""A process that has everything imported, and forks one for each trial: imports take longer than a small trial.

Told on its standard input what to begin, a line each (`number folder stages threads`, as JSON); says on its standard
output which have ended (`number code`). It goes when its standard input closes, and its trials with it. Only where a
fork is safe: on Linux, and before anything has been computed.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from midblock.studies.study.worker import LOG, end_with_parent, work

TICK = 0.05  # seconds between looks at the trials
# What a tuning imports when it begins; the first is an optional extra.
AHEAD = ("midblock.tuning.loop.trainer", "peft", "transformers.models.llama.modeling_llama", "midblock.studies.study")


def main() -> int:
    """Begin trials and tell of their ends, until nobody asks any more."""
    for name in AHEAD:
        with suppress(ImportError):
            import_module(name)
    running: dict[int, int] = {}  # process → the number it was asked under
    waiting, asked = b"", sys.stdin.fileno()
    with selectors.DefaultSelector() as told:
        told.register(asked, selectors.EVENT_READ)
        while True:
            if told.select(TICK):
                part = os.read(asked, 65536)
                if not part:
                    break
                *lines, waiting = (waiting + part).split(b"\n")
                for line in lines:
                    number, folder, stages, threads = json.loads(line)
                    running[_begin(folder, stages, threads)] = number
            _tell_of_ends(running)
    for process in running:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return 0


def _begin(folder: str, stages: Sequence[str], threads: int) -> int:
    """Fork a process for a trial; returns its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        log = os.open(Path(folder) / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for ours, stream in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(ours, stream)
        os.setsid()
        end_with_parent()
        code = 0 if work(folder, stages, threads) else 2
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)  # nothing of what the parent has open is the child's to close


def _tell_of_ends(running: dict[int, int]) -> None:
    while running:
        process, status = os.waitpid(-1, os.WNOHANG)
        if not process:
            return
        if process in running:
            print(running.pop(process), os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
