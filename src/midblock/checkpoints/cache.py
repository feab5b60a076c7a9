"""The user cache: folders that are made once, whole or not at all, however many processes ask at the same time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from midblock.base import MidblockError, user_path
from midblock.base.files import write_failure


def cache_root() -> Path:
    """Where midblock keeps what it can make again: $MIDBLOCK_CACHE, $XDG_CACHE_HOME/midblock or ~/.cache/midblock."""
    if own := os.environ.get("MIDBLOCK_CACHE"):
        return user_path(own)
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "midblock"


def folder_once(name: str, fill: Callable[[Path], None]) -> Path:
    """Return the cache's folder `name`, made by `fill` if it is not there yet.

    A lock lets one process work while the others wait; the folder takes its name only when `fill` is through, and what
    a killed process left is cleared by the next.

    Args:
        name: path below the cache's root; change it when `fill` would give something else.
        fill: writes into the empty folder it is given.

    Raises:
        MidblockError: when the cache cannot be written or is full; also whatever `fill` raises.
    """
    from filelock import FileLock

    folder = cache_root() / name
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.is_dir():
                _fill(folder, partial, fill)
    except (OSError, SafetensorError) as error:
        failure = write_failure(folder, error)
        raise MidblockError(failure.what, hint="MIDBLOCK_CACHE names another place for the cache") from error
    return folder


def _fill(folder: Path, partial: Path, fill: Callable[[Path], None]) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        fill(partial)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
