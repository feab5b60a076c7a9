"""Standard output and error that outlive their reader: what cannot be shown never ends a run."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from midblock.base.errors import MidblockError

GONE = (errno.EPIPE, errno.ECONNRESET, errno.EIO)  # the reader of a pipe ended, or the terminal was closed


class Lasting:
    """A text stream that says what it can: escapes what its encoding lacks, and is silent once nobody reads it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            self._write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._lose(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            encoding = self.stream.encoding or "ascii"
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _lose(self, error: OSError) -> None:
        """Let what is still to come go nowhere, the interpreter's own last flush too.

        Raises:
            MidblockError: it is another error: a full disk under `> FILE` is no reader that went away.
        """
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
        if error.errno not in GONE:
            raise MidblockError(f"cannot print: {error.strerror or error}") from error


@contextmanager
def lasting() -> Iterator[None]:
    """Inside, `sys.stdout` and `sys.stderr` outlive their readers; they are flushed on leaving."""
    before = sys.stdout, sys.stderr
    streams = [Lasting(stream) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield
        for stream in streams:
            stream.flush()
    finally:
        sys.stdout, sys.stderr = before
