"""run_program: a model's solution and the tests of its problem, in a process that is limited and then ended.

What is promised, on Linux (x86_64, aarch64), for root as for anyone: at most so much CPU time, wall time and memory; no
network, no other process or thread, no signal to another process, nothing written to disk, nothing left running. Where
the kernel has Landlock, only Python's and the system's own files can be read; without it, whatever the user can read.
It is no virtual machine: a fault of the kernel in what is allowed is not guarded against. A program counts as passed
where its last test was through, not by its exit code; one that looks for the report within its own process could forge
it, so a score tells of honest programs.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import platform
import secrets
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from midblock.base import MidblockError
from midblock.evaluation.isolation.seccomp import MACHINES, build_filter

FILE = Path(__file__).with_name("process.py")
REPORT = 2**16  # bytes; a report has a few hundred
SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/urandom")
KEPT = ("LD_LIBRARY_PATH",)  # of this process's environment: without it some interpreters do not start
LANDLOCK_VERSION = (444, None, 0, 1)  # the call that asks for it


@dataclass(frozen=True)
class Limits:
    """What a program may take.

    Attributes:
        cpu_seconds: of computing, whole seconds.
        seconds: of wall time.
        memory: bytes of address space, the interpreter's own included.
    """

    cpu_seconds: int = 5
    seconds: float = 10.0
    memory: int = 2**30


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Attributes:
        passed: its last test was through.
        reason: why not, in one line; empty where it passed.
        stopped: it went beyond a limit, or ended before its tests could tell.
    """

    passed: bool
    reason: str = ""
    stopped: bool = False


def run_program(solution: str, tests: str, limits: Limits | None = None) -> Outcome:
    """Run a solution, then its tests, in a new process.

    Args:
        solution: Python source.
        tests: source that runs behind it, in the same module, and raises where the solution is wrong.

    Raises:
        MidblockError: the limits cannot be had here; what is missing is named.
    """
    limits = limits or Limits()
    machine = _machine()
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="midblock-") as folder, _started(folder) as process:
        request = _request(limits, folder, process.pid, machine) | {"solution": solution, "tests": tests, "word": word}
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request).encode("ascii"))  # type: ignore[union-attr]
            process.stdin.close()  # type: ignore[union-attr]
        report, beyond = _listen(process, limits.seconds)
    return _outcome(report, word, beyond, process.returncode, limits)


def can_limit_reading() -> bool:
    """Whether this kernel has Landlock."""
    return sys.platform.startswith("linux") and _landlock()


@cache
def _landlock() -> bool:
    return int(ctypes.CDLL(None, use_errno=True).syscall(*LANDLOCK_VERSION)) >= 1


def _machine() -> str:
    machine = platform.machine()
    if not sys.platform.startswith("linux") or machine not in MACHINES:
        here = f"{platform.system()} on {machine}"
        what = f"programs that models write cannot be run here: {here} has no seccomp filter that is known"
        raise MidblockError(what, hint="run this task on Linux (x86_64 or aarch64)")
    return machine


def _request(limits: Limits, folder: str, process: int, machine: str) -> dict[str, Any]:
    paths = sorted({sysconfig.get_path(name) for name in ("purelib", "platlib")})
    readable = [*SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, *paths, folder]
    return {
        "filter": base64.b64encode(build_filter(machine, process)).decode("ascii"),
        "memory": limits.memory,
        "seconds": limits.cpu_seconds,
        "parent": os.getpid(),
        "paths": paths,
        "readable": readable if can_limit_reading() else [],
    }


@contextmanager
def _started(folder: str) -> Iterator[subprocess.Popen[bytes]]:
    """The process, in a group of its own, which is ended at the end."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    surroundings = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **kept}
    # -P: nothing beside the file is imported; -S: nothing of the environment runs before the limits are set
    command = [sys.executable, "-P", "-s", "-S", "-B", "-X", "utf8", str(FILE)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=folder, env=surroundings, start_new_session=True, **pipes)
    try:
        yield process
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


def _listen(process: subprocess.Popen[bytes], seconds: float) -> tuple[bytes, str]:
    """What the process reported, and the limit that it went beyond while it was listened to ("" if none)."""
    end, report = time.monotonic() + seconds, b""
    pipe = process.stdout.fileno()  # type: ignore[union-attr]
    waiting = select.poll()  # select itself takes no descriptor beyond 1,023
    waiting.register(pipe, select.POLLIN)
    while (left := end - time.monotonic()) > 0:
        if not waiting.poll(1000 * left):
            break
        part = os.read(pipe, REPORT)
        report += part
        if len(report) > REPORT:
            return report, "more to report than a program has"
        if not part:
            with suppress(subprocess.TimeoutExpired):  # it may close its end and go on
                process.wait(max(0.0, end - time.monotonic()))
                return report, ""
    return report, f"more than {seconds:g} s"


def _outcome(report: bytes, word: str, beyond: str, code: int, limits: Limits) -> Outcome:
    lines = [line for line in map(_parsed, report.split(b"\n")) if line.get("word") == word]
    missing = next((line["missing"] for line in lines if "missing" in line), None)
    if missing is not None or not any("limited" in line for line in lines):
        what = f"programs that models write cannot be run here: {missing or 'no limited process could be started'}"
        raise MidblockError(what, hint="this task needs a kernel, and a container, that lets a process limit itself")
    if beyond:
        return Outcome(False, f"took {beyond}", stopped=True)
    if any("passed" in line for line in lines):
        return Outcome(True)
    if failed := next((line["failed"] for line in lines if "failed" in line), None):
        return Outcome(False, str(failed))
    if code == -signal.SIGXCPU:
        return Outcome(False, f"took more than {limits.cpu_seconds} s of computing", stopped=True)
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return Outcome(False, f"ended {how} before its tests were through", stopped=True)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
