"""Writing so that a reader never meets half a file."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from midblock.base.errors import MidblockError


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


def write_failure(path: Path, error: Exception) -> MidblockError:
    """Turn an operating system's refusal to write into one line for the user."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full or f"(os error {errno.ENOSPC})" in str(error):  # safetensors has the system's number in its text only
        return MidblockError(f"no space left for {path}", hint="free some, then run again with --resume")
    return MidblockError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}")


def size_text(count: int) -> str:
    """Bytes as 513.0 MiB or 4.2 GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def write_json(path: Path, value: Any) -> None:
    with replace_atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False, default=str) + "\n", encoding="utf-8")
