"""check_isolation: before the first program of a model runs, programs that try each limit, which must stop them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from midblock.base import MidblockError
from midblock.evaluation.isolation.program import Limits, Outcome, can_limit_reading, run_program

TIGHT = Limits(cpu_seconds=1, seconds=5.0, memory=2**28)
SHORT = Limits(cpu_seconds=1, seconds=0.3, memory=2**28)
FORK = "import os\nif os.fork() == 0:\n    os._exit(0)"
READ = "import os\nopen(f'/proc/{os.getppid()}/environ').read()"

REFUSED = "PermissionError"
# What is limited, a program that is to be stopped, and how the reason begins: it may fail at something else, too.
TRIALS: Mapping[str, tuple[str, Limits, str]] = {
    "the network": ("import socket\nsocket.socket()", TIGHT, REFUSED),
    "processes": (FORK, TIGHT, REFUSED),
    "other programs": ("import os, sys\nos.execv(sys.executable, ['python', '-V'])", TIGHT, REFUSED),
    "threads": ("import threading\nthreading.Thread(target=print).start()", TIGHT, "RuntimeError: can't start new"),
    "writing": ("open('file', 'w')", TIGHT, REFUSED),
    "signals": ("import os\nos.kill(os.getppid(), 0)", TIGHT, REFUSED),
    "memory": (f"bytearray({TIGHT.memory})", TIGHT, "MemoryError"),
    "computing time": ("while True:\n    pass", TIGHT, f"took more than {TIGHT.cpu_seconds} s of computing"),
    "time": ("import time\ntime.sleep(60)", SHORT, f"took more than {SHORT.seconds} s"),
    "the end": ("import os\nos._exit(0)", TIGHT, "ended with exit code 0"),
}


@cache
def check_isolation() -> tuple[str, ...]:
    """Try every limit, once a process; about two seconds.

    Returns:
        What a reader must know of limits that this kernel does not have.

    Raises:
        MidblockError: programs cannot be run here at all, or a limit does not hold; it is named.
    """
    if not (outcome := run_program("x = 1", "assert x == 1", TIGHT)).passed:
        raise MidblockError(f"programs that models write cannot be run here: a plain one failed ({outcome.reason})")
    for name, (source, limits, reason) in TRIALS.items():
        _held(name, run_program(source, "", limits), reason)
    if not can_limit_reading():
        return ("The kernel has no Landlock: programs that models wrote could read files, though send them nowhere.",)
    _held("reading", run_program(READ, "", TIGHT), REFUSED)
    return ()


def _held(name: str, outcome: Outcome, reason: str) -> None:
    if not outcome.reason.startswith(reason):
        what = f"programs that models write cannot be run here: the limit on {name} does not hold"
        raise MidblockError(what, hint="run this task on another machine or container")
