"""A bug of ours at the door: one line for the user, and a file with what we need to mend it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from midblock.runs.surroundings import surroundings


def crash_line(error: Exception, arguments: Sequence[str]) -> str:
    """Write the traceback to a file of its own in the system's folder for such, and say where it is."""
    said = " ".join(str(error).split())[:200]
    what = f"{type(error).__name__}: {said}" if said else type(error).__name__
    text = "\n".join(
        [
            json.dumps(surroundings(), indent=2),
            f"midblock {' '.join(map(repr, arguments))}",
            "".join(traceback.format_exception(error)),
        ]
    )
    name = f"midblock-crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    try:
        file = Path(tempfile.gettempdir()) / name
        with file.open("x", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
    except OSError:
        print(text, file=sys.stderr)
        return f"a bug of ours: {what} (please report what stands above)"
    return f"a bug of ours: {what} (please report it, with {file})"
