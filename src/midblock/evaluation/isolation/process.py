"""The process that runs one program of a model; `program.py` starts it, tells it the limits, and reads its report.

It is run as a file, so that it imports as little as it can. Limits are set first and for good, then the solution runs,
then its tests; the report is written only where the last test is through. Lines of the report begin with a word that
the program is not told.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import resource
import signal
import struct
import sys
import types
from typing import Any, NoReturn

SET_PARENT_DEATH_SIGNAL, SET_SECCOMP, SET_NO_NEW_PRIVILEGES = 1, 22, 38  # of prctl
FILTER = 2
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock's calls
READ_FILE, READ_FOLDER, EVERYTHING = 1 << 2, 1 << 3, (1 << 13) - 1  # its rights, those of its first version
LETTERS = 200  # of a reason
OPEN_FILES = 64


def main() -> None:
    """Run what is asked for on standard input."""
    request = json.loads(sys.stdin.buffer.read())
    report, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    word = request.pop("word")
    try:
        _set_limits(request)
    except OSError as error:
        _end(report, {"word": word, "missing": str(error)})
    os.write(report, _line({"word": word, "limited": True}))
    _run(request["solution"], request["tests"], request["paths"], report, word)


def _set_limits(request: dict[str, Any]) -> None:
    """Set every limit.

    Raises:
        OSError: the kernel does not have one of them; its text names it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    libc.syscall.restype = ctypes.c_long
    _call(libc.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0), "ending with the process that started it")
    if os.getppid() != request["parent"]:  # it ended before this process asked to end with it
        os._exit(1)
    seconds = request["seconds"]
    for name, soft, hard in (
        ("RLIMIT_AS", request["memory"], request["memory"]),
        ("RLIMIT_CPU", seconds, seconds + 1),  # a program can catch the signal at the first, not at the second
        ("RLIMIT_FSIZE", 0, 0),
        ("RLIMIT_CORE", 0, 0),
        ("RLIMIT_NOFILE", OPEN_FILES, OPEN_FILES),
    ):
        try:
            resource.setrlimit(getattr(resource, name), (soft, hard))
        except (ValueError, OSError) as error:
            raise OSError(f"{name} ({error})") from error
    _call(libc.prctl(SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
    if request["readable"]:
        _limit_reading(libc, request["readable"])
    code = base64.b64decode(request["filter"])
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(held))
    program_held = ctypes.create_string_buffer(program, len(program))
    _call(libc.prctl(SET_SECCOMP, FILTER, ctypes.addressof(program_held), 0, 0), "seccomp")


def _limit_reading(libc: Any, readable: list[str]) -> None:
    """Let this process read below these places alone, and write nowhere (Landlock)."""
    rules = struct.pack("=Q", EVERYTHING)
    number = _call(libc.syscall(CREATE_RULESET, ctypes.c_char_p(rules), ctypes.c_size_t(len(rules)), 0), "Landlock")
    for place in readable:
        try:
            at = os.open(place, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        rights = READ_FILE | READ_FOLDER if os.path.isdir(place) else READ_FILE
        rule = struct.pack("=Qi", rights, at)
        _call(libc.syscall(ADD_RULE, number, 1, ctypes.c_char_p(rule), 0), "Landlock")
        os.close(at)
    _call(libc.syscall(RESTRICT_SELF, number, 0), "Landlock")
    os.close(number)


def _call(result: int, name: str) -> int:
    if result < 0:
        raise OSError(f"{name} ({os.strerror(ctypes.get_errno())})")
    return result


def _run(solution: str, tests: str, paths: list[str], report: int, word: str) -> None:
    """Run both in one module, and report; what is needed for that is taken before a stranger can exchange it."""
    passed, end, run, make = _line({"word": word, "passed": True}), os._exit, exec, compile
    write, failed = os.write, _end
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    sys.path += paths
    try:
        run(make(solution, "solution", "exec"), module.__dict__)
        run(make(tests, "tests", "exec"), module.__dict__)
    except BaseException as error:  # SystemExit, too, came before the last test was through
        failed(report, {"word": word, "failed": _reason(error)})
    write(report, passed)
    end(0)


def _reason(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {text}"[:LETTERS].rstrip(": ")


def _line(what: dict[str, Any]) -> bytes:
    return json.dumps(what).encode("ascii") + b"\n"


def _end(report: int, what: dict[str, Any]) -> NoReturn:
    os.write(report, _line(what))
    os._exit(0)


if __name__ == "__main__":
    main()
