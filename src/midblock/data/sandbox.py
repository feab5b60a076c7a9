"""Sandbox: where chat templates are rendered, in a process apart, for they come with models of strangers.

Jinja's own sandbox keeps a template from running code, not from running for ever or filling the memory. What is
promised here: a rendering takes at most 10 s, all of one template together 10 s and 0.1 s more for each of them; a text
is no longer than a million letters and 64 times what was said; on Linux a rendering takes at most 1 GiB and 64 times
what was said. The process starts once, in about a second, and answers for an honest template in about a millisecond.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from midblock.base import MidblockError

PROGRAM = Path(__file__).with_name("sandbox_process.py")
FIRST, EACH = 10.0, 0.1  # seconds for a rendering, or for all of a template, and more for each of them
LETTERS, BYTES, TIMES = 10**6, 2**30, 64
HINT = "use --template raw, or another .jinja file"

Span = tuple[int, int]


class TemplateFailedError(Exception):
    """A template does not take a conversation; the text is its reason."""


class RunawayTemplateError(MidblockError):
    """A template goes beyond a limit: it is not to be tried on anything else."""


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

    def render(self, source: str, options: dict[str, Any]) -> tuple[str, list[Span]]:
        """Write one conversation.

        Args:
            source: the template.
            options: keyword arguments of transformers' `render_jinja_template`, plain data.

        Returns:
            The text, and where in it the template's own `{% generation %}` marks answers.

        Raises:
            TemplateFailedError: the template fails.
            RunawayTemplateError: it takes too long, or writes or needs too much.
        """
        try:
            conversation = pickle.dumps({**options, "chat_template": source})
        except (RecursionError, pickle.PicklingError, AttributeError, TypeError) as error:
            raise TemplateFailedError(f"what is said is no plain data ({type(error).__name__})") from error
        with self._lock:
            answer = self._within_limits(source, conversation)
            if "beyond" in answer:
                self._left[source] = -EACH  # once is enough
                raise RunawayTemplateError(f"the chat template takes {answer['beyond']}", hint=HINT)
        if "reason" in answer:
            raise TemplateFailedError(answer["reason"])
        return answer["text"], [(start, end) for start, end in answer["spans"]]

    def _within_limits(self, source: str, conversation: bytes) -> dict[str, Any]:
        """The answer; "beyond" says beyond which limit the template goes."""
        left = self._left.get(source, self._seconds) + EACH
        if left <= 0:
            return {"beyond": "too long or too much"}
        seconds, more = min(left, self._seconds), TIMES * len(conversation)
        limits = {"seconds": seconds, "bytes": BYTES + more, "letters": LETTERS + more}
        started, answer = self._exchange({"options": conversation, **limits})
        took = time.monotonic() - started
        self._left[source] = left - took
        if answer is None:
            return {"beyond": f"more than {seconds:.1f} s" if took >= seconds else "more than a process can have"}
        return answer

    def _exchange(self, request: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
        """When it was asked, and the answer: None where the process ended over it."""
        process = self._running()
        started = time.monotonic()
        try:
            with suppress(BrokenPipeError):
                pickle.dump(request, process.stdin)  # type: ignore[arg-type]
                process.stdin.flush()  # type: ignore[union-attr]
            line = process.stdout.readline()  # type: ignore[union-attr]
        except BaseException:  # stopped in the middle of an answer: the next one would be taken for it
            self.close()
            raise
        if not line.endswith(b"\n"):
            self.close()
            return started, None
        return started, json.loads(line)

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

    def close(self) -> None:
        """End the process, if there is one and it is this process's own."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        if self._owner == os.getpid():
            process.kill()
            process.wait()


SANDBOX = Sandbox()
atexit.register(SANDBOX.close)
