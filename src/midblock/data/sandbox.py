"""Sandbox: where chat templates are rendered, in a process apart, for they come with models of strangers.

Jinja's own sandbox keeps a template from running code, not from running for ever or filling the memory. What is
promised here: a rendering takes at most 10 s, all of one template together 10 s and 0.1 s more for each of them; a text
is no longer than a million letters and 64 times what was said; on Linux a rendering takes at most 1 GiB and 64 times
what was said. The process starts once, in about a second; asked for many conversations at a time, it takes little
longer than to render them here.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from midblock.base import MidblockError

PROGRAM = Path(__file__).with_name("sandbox_process.py")
FIRST, EACH = 10.0, 0.1  # seconds for a rendering, or for all of a template, and more for each of them
LETTERS, BYTES, TIMES = 10**6, 2**30, 64
EXCHANGE = 2**20  # bytes of conversations asked for at a time
OUT_OF_TIME = -signal.SIGALRM if hasattr(signal, "setitimer") else 1  # how the process ends itself
HINT = "use --template raw, or another .jinja file"

Span = tuple[int, int]
Written = tuple[str, list[Span]]  # the text, and where `{% generation %}` marks answers


class TemplateFailedError(Exception):
    """A template does not take a conversation; the text is its reason."""


class RunawayTemplateError(MidblockError):
    """A template goes beyond a limit: it is not to be tried on anything else."""


Answer = Written | TemplateFailedError | RunawayTemplateError


class Sandbox:
    """A process that renders templates, started when it is first asked and again after it had to be ended.

    Args:
        seconds: the most that a rendering takes.
    """

    def __init__(self, seconds: float = FIRST) -> None:
        self._seconds = seconds
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._left: dict[str, float] = {}
        self._runaways: dict[bytes, str] = {}

    def render(self, source: str, options: dict[str, Any]) -> Written:
        """Write one conversation.

        Args:
            source: the template.
            options: keyword arguments of transformers' `render_jinja_template`, plain data.

        Returns:
            The text, and where in it the template's own `{% generation %}` marks answers.

        Raises:
            TemplateFailedError: the template fails.
            RunawayTemplateError: it takes too long, or writes or needs too much; it is not tried again.
        """
        (answer,) = self.render_some(source, [options])
        if isinstance(answer, RunawayTemplateError):
            self.give_up(source)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def render_some(self, source: str, asked: Sequence[dict[str, Any]], *, stop: bool = False) -> list[Answer]:
        """Write the first of some conversations, as many as go into one exchange.

        Args:
            source: the template.
            asked: as `options` of `render`, at least one.
            stop: whether to write none behind the first that fails.

        Returns:
            What `render` would return or raise for the first of them, one at least; none behind a runaway.
        """
        packed: list[bytes] = []
        size = 0
        for options in asked:
            try:
                conversation = _pack(source, options)
            except TemplateFailedError as error:
                if not packed:
                    return [error]
                break
            size += len(conversation)
            if packed and (size > EXCHANGE or conversation in self._runaways):
                break
            packed.append(conversation)
        with self._lock:
            if self._left.get(source, self._seconds) + EACH <= 0:
                return [_runaway("too long or too much")]
            if packed[0] in self._runaways:
                return [_runaway(self._runaways[packed[0]])]
            return self._within_limits(source, packed, stop)

    def give_up(self, source: str) -> None:
        """Try a template on nothing else, since it was told that it goes beyond a limit."""
        self._left[source] = -EACH

    def _within_limits(self, source: str, packed: list[bytes], stop: bool) -> list[Answer]:
        limits = {"seconds": self._seconds, "each": EACH, "memory": BYTES, "letters": LETTERS, "times": TIMES}
        left = self._left.get(source, self._seconds)
        answers: list[Answer] = []
        try:
            self._ask({"conversations": packed, "stop": stop, "left": left, **limits})
            for conversation in packed:
                found = self._next_answer() or self._last_answer(left + EACH)
                left = found["left"]
                answers.append(_as_answer(found))
                if "beyond" in found:
                    self._runaways[conversation] = found["beyond"]
                if found["last"]:
                    break
        except BaseException:  # stopped in the middle: what is left would be taken for the next answers
            self.close()
            raise
        self._left[source] = left
        return answers

    def _ask(self, request: dict[str, Any]) -> None:
        process = self._running()
        with suppress(BrokenPipeError):
            process.stdin.write(pickle.dumps(request))  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]

    def _next_answer(self) -> dict[str, Any] | None:
        """None where the process ended over it."""
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        return json.loads(line) if line.endswith(b"\n") else None

    def _last_answer(self, left: float) -> dict[str, Any]:
        """What is said of the conversation that the process ended over."""
        seconds = min(left, self._seconds)
        if self.close() == OUT_OF_TIME:
            return {"beyond": f"more than {seconds:.1f} s", "left": left - seconds, "last": True}
        return {"beyond": "more than a process can have", "left": left, "last": True}

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        self.close()
        surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-P", str(PROGRAM)]  # -P: what stands beside the file is not to be imported
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process, self._owner = subprocess.Popen(command, env=surroundings, **pipes), os.getpid()
        if not self._process.stdout.readline():  # type: ignore[union-attr]
            self.close()
            raise MidblockError("no process could be started to render the chat template in", hint="use --template raw")
        return self._process

    def close(self) -> int | None:
        """End the process, if there is one and it is this process's own, and return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        if self._owner != os.getpid():
            return None
        process.kill()
        return process.wait()


def _pack(source: str, options: dict[str, Any]) -> bytes:
    try:
        return pickle.dumps({**options, "chat_template": source})
    except (RecursionError, pickle.PicklingError, AttributeError, TypeError) as error:
        raise TemplateFailedError(f"what is said is no plain data ({type(error).__name__})") from error


def _as_answer(found: dict[str, Any]) -> Answer:
    if "beyond" in found:
        return _runaway(found["beyond"])
    if "reason" in found:
        return TemplateFailedError(found["reason"])
    return found["text"], [(start, end) for start, end in found["spans"]]


def _runaway(beyond: str) -> RunawayTemplateError:
    return RunawayTemplateError(f"the chat template takes {beyond}", hint=HINT)


SANDBOX = Sandbox()
atexit.register(SANDBOX.close)
