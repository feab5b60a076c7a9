"""The process of one trial: what every backend starts. `python -m midblock.studies.study.worker FOLDER STAGES THREADS`.

What it prints goes to `trial.log`; what it cannot do is told in one line in `failed.json`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from midblock.base import MidblockError, write_json
from midblock.studies.study.stages import FAILED, carry_out, set_threads

LOG = "trial.log"
TICK = 0.2  # seconds between looks at the parent


def work(folder: str, stages: Sequence[str], threads: int, place: str = ".") -> bool:
    """Do a trial's stages in this process.

    Args:
        folder: the trial's.
        threads: that it may compute with.
        place: the folder that relative paths of the study start from.

    Returns:
        Whether it could; why not stands in `failed.json`.
    """
    os.chdir(place)
    set_threads(threads)
    path = Path(folder)
    try:
        carry_out(path, stages)
    except MidblockError as error:
        told = str(error)
    except Exception as error:
        traceback.print_exc()
        told = f"a bug of ours: {type(error).__name__}: {error} (its traceback is in {LOG})"
    else:
        return True
    write_json(path / FAILED, {"error": " ".join(told.split())})
    return False


def logged(folder: str, stages: Sequence[str], threads: int, place: str) -> bool:
    """The same for an engine's process: what is printed goes to the trial's log."""
    os.chdir(place)
    log = os.open(Path(folder) / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    before = [os.dup(stream) for stream in (1, 2)]
    try:
        for stream in (1, 2):
            os.dup2(log, stream)
        return work(folder, stages, threads, place)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, stream)
            os.close(kept)
        os.close(log)


def end_with_parent() -> None:
    """When whoever started this process is gone, nobody waits for the trial, and another study may take it up."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(TICK)
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: Sequence[str]) -> int:
    """Do the stages that the command line names."""
    end_with_parent()
    folder, stages, threads = arguments
    return 0 if work(folder, stages.split(","), int(threads)) else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
