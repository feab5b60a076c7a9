"""The lock on a run folder: one process fills it, a second one is told who does, a dead one's lock is taken over.

The operating system holds the lock (`flock`, by way of filelock) and lets go of it when the process ends, however it
ends. Over NFS that holds between machines too, unless it was mounted with `nolock` or `local_lock`. Where a file system
has no locks at all, filelock falls back on a file that exists: a kill leaves it behind, and only its own machine can
tell that its process is dead. Described in docs/run_folder.md, "Writing, stopping, resuming".
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from midblock.base import MidblockError
from midblock.base.files import sweep, unfinished, write_failure

LOCK = ".midblock.lock"
ATTEMPTS = 20  # a holder that ends removes the file, so the lock on a removed one guards nothing: take the next


@contextmanager
def held(target: Path, *, beside: bool = False, patience: float = 0.0) -> Iterator[None]:
    """Hold a run folder while it is written, and clear away what killed holders left unfinished in it.

    Args:
        target: the folder; it is made if need be, and goes again if nothing was put into it.
        beside: the lock lies beside `target` (a file, or a folder that appears whole), not in it.
        patience: seconds to wait for another holder.

    Raises:
        MidblockError: another process holds it (the message says which), or the place cannot be written.

    Example:
        >>> with held(Path("runs/demo")):
        ...     sorted(path.name for path in Path("runs/demo").iterdir())
        ['.midblock.lock']
    """
    target = target.resolve()
    file = _file(target, beside)
    place = file.parent
    made = _make(place)
    try:
        lock = _acquire(file, target, patience)
        try:
            for folder in (place,) if beside else (place, place / "figures"):
                sweep(folder, target.name if beside else None)
            yield
        finally:
            with suppress(OSError):
                file.unlink()
            lock.release()
    finally:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()


def check_not_held(target: Path, *, beside: bool = False) -> None:
    """Raise MidblockError where another process holds a place; nothing is changed."""
    target = target.resolve()
    file = _file(target, beside)
    if file.exists():
        _acquire(file, target, 0.0).release()


def occupied(folder: Path) -> bool:
    """Whether something lies in a folder beside a lock and what killed processes left unfinished.

    Raises:
        OSError: the folder cannot be read.
    """
    passing = {folder / LOCK, *unfinished(folder)}
    return folder.is_dir() and any(entry not in passing for entry in folder.iterdir())


def _file(target: Path, beside: bool) -> Path:
    return target.parent / f".{target.name}{LOCK}" if beside else target / LOCK


def _make(place: Path) -> list[Path]:
    """Make a folder; return those that were not there, the outermost first."""
    missing = [folder for folder in (place, *place.parents) if not folder.exists()]
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(place, error) from error
    return missing[::-1]


def _acquire(file: Path, target: Path, patience: float) -> BaseFileLock:
    for _ in range(ATTEMPTS):
        lock = FileLock(file, timeout=patience)
        try:
            lock.acquire()
            if _names(file, lock):
                _sign(file)
                return lock
            lock.release()
        except Timeout:
            raise MidblockError(
                f"{target} is being written by {_holder(file)}", hint="wait for it, or stop it"
            ) from None
        except (OSError, NotImplementedError) as error:
            raise write_failure(file, error) from error
    raise MidblockError(f"{target} is being written by others, one after the other", hint="try again")


def _names(file: Path, lock: BaseFileLock) -> bool:
    """Whether the file that is locked is still the one that has this name."""
    descriptor = lock._context.lock_file_fd  # filelock has no other way to ask
    try:
        named = file.stat()
    except FileNotFoundError:
        return False
    return descriptor is None or os.path.samestat(os.fstat(descriptor), named)


def _sign(file: Path) -> None:
    """Say in the lock who holds it; filelock's own fallback has said so already."""
    if file.stat().st_size == 0 or file.read_text(encoding="utf-8", errors="replace").startswith("{"):
        holder = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        file.write_text(json.dumps(holder), encoding="utf-8")


def _holder(file: Path) -> str:
    """Who holds a lock, in words."""
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
        return f"process {int(holder['process'])} on {holder['host']!s}, since {holder['since']!s}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
