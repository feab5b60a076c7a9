"""Writing so that a reader never meets half a file."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from midblock.base.errors import MidblockError, NoSpaceError

# What is written before it takes its name: .NAME.PROCESS.tmp for a file, .NAME.PROCESS.partial for a folder.
_UNFINISHED = re.compile(r"\.(?P<name>.+)\.\d+\.(?:tmp|partial)", re.DOTALL)

_SIZE = re.compile(r"(?P<number>[0-9]{1,20}(?:\.[0-9]{1,9})?) ?(?:(?P<power>[kmgt])(?:(?P<binary>i)?b)?|b)?")
_POWERS = {None: 0, "k": 1, "m": 2, "g": 3, "t": 4}
LARGEST_SIZE = 2**63  # bytes

SHOWN = 120  # letters of a place in a message


def user_path(text: str | Path) -> Path:
    """The place that a user or a file names, `~` read as the home folder; asking whether it exists is safe.

    Raises:
        MidblockError: no home of that name, a name that no file can have, or a folder before it that cannot be entered.
    """
    shown = repr(str(text)) if len(str(text)) <= SHOWN else f"{str(text)[:SHOWN]!r}…"
    try:
        path = Path(text).expanduser()
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError, ValueError) as error:
        # RuntimeError: no such home; ValueError: a zero byte, or half a surrogate pair
        reason = getattr(error, "strerror", None) or str(error)
        raise MidblockError(f"cannot look at {shown}: {reason[:1].lower()}{reason[1:]}") from error
    return path


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving without an error it takes the name `path`.

    Raises:
        MidblockError: when the disk is full or the place cannot be written; what stood at `path` before still stands.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise write_failure(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def folder_atomically(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder`; on leaving without an error it takes that name, and what stood there goes.

    Raises:
        MidblockError: the disk is full, the place cannot be written, or somebody else wrote there meanwhile.
    """
    folder = folder.resolve()
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        stood = folder.exists()
        (scratch / "made").mkdir(parents=True)
        try:
            yield scratch / "made"
            if folder.exists() and not stood:
                raise MidblockError(f"{folder} was written by another run meanwhile", hint="choose another name")
            _exchange(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise write_failure(folder, error) from error


def _exchange(scratch: Path, folder: Path) -> None:
    """Give what was made the name `folder`; what stood there stays if that fails."""
    if folder.exists():
        folder.rename(scratch / "before")
    try:
        (scratch / "made").rename(folder)
    except OSError:
        with suppress(OSError):
            (scratch / "before").rename(folder)
        raise


def unfinished(folder: Path, name: str | None = None) -> list[Path]:
    """What lies in a folder under the names that files and folders have until they are whole.

    Args:
        name: only what was to become this entry.
    """
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(entry for entry in entries if (aim := _aim(entry)) is not None and name in (None, aim))


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left unfinished; only who alone writes there may call this.

    A process that was killed between the two renames of `folder_atomically` has what stood there: it is put back.

    Args:
        name: as of `unfinished`.
    """
    for entry in unfinished(folder, name):
        if entry.is_dir() and not entry.is_symlink():
            stood = folder / str(_aim(entry))
            if (entry / "before").exists() and not stood.exists():
                (entry / "before").rename(stood)
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with suppress(OSError):
                entry.unlink()


def _aim(entry: Path) -> str | None:
    """The name that something unfinished was to take; None for anything else."""
    match = _UNFINISHED.fullmatch(entry.name)
    return match["name"] if match else None


def write_failure(path: Path, error: Exception) -> MidblockError:
    """Turn an operating system's refusal to write into one line for the user."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full or f"(os error {errno.ENOSPC})" in str(error):  # safetensors has the system's number in its text only
        return NoSpaceError(f"no space left for {path}", hint="free some and run it again")
    return MidblockError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}")


def stamps(files: Iterable[Path]) -> list[list[str | int]]:
    """Name, size and age (nanoseconds) of each file: they tell a change without reading any; folders are left out."""
    facts = [(file.name, file.stat()) for file in files if file.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in facts]


def size_text(count: int) -> str:
    """Bytes as 513.0 MiB or 4.2 GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def read_size(text: str | int) -> int:
    """Bytes that a size in words means: `4GB` (10⁹ each), `3.5 GiB` (2³⁰ each), `500MB`; a bare number is bytes.

    It reads what `size_text` writes.

    Raises:
        MidblockError: it is no size, or less than one byte.
    """
    found = _SIZE.fullmatch(str(text).strip().lower())
    power = _POWERS[found["power"]] if found else 0
    count = int(float(found["number"]) * (1024 if found["binary"] else 1000) ** power) if found else 0
    if not 0 < count < LARGEST_SIZE:
        raise MidblockError(f"cannot read the size {str(text)[:SHOWN]!r}", hint="such as 4GB, 3.5GiB or 500MB")
    return count


def write_json(path: Path, value: Any) -> None:
    with replace_atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False, default=str) + "\n", encoding="utf-8")
