"""Files that were named by others, looked at before they are opened.

Opening a pipe waits for a writer that may never come, and a device never ends: what is no plain file is told.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from midblock.base.errors import MidblockError

PIECE = 2**20  # bytes


def check_plain_file(path: Path) -> None:
    """Do nothing if `path` is a file, or a link to one.

    Raises:
        MidblockError: nothing is there, it is a folder, a pipe or a device, or its name is none that a file can have.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: the name holds a zero byte
        raise unreadable(path, error) from error
    if not stat.S_ISREG(mode):
        raise MidblockError(f"cannot read {path}: it is a {_kind(mode)}, no file")


def read_bytes(path: Path, largest: int) -> bytes:
    """What a file holds.

    Args:
        largest: bytes that it may have.

    Raises:
        MidblockError: it is no file, larger, or cannot be read; the message names it.
    """
    check_plain_file(path)
    try:
        with path.open("rb") as stream:
            content = read_at_most(stream, largest + 1)  # a file may grow while it is looked at
    except OSError as error:
        raise unreadable(path, error) from error
    if len(content) > largest:
        raise MidblockError(f"{path} is larger than {largest / 10**6:g} MB", hint="is it the file that was meant?")
    return content


def read_at_most(stream: BinaryIO, count: int) -> bytes:
    """Up to so many bytes; a stream that is asked for them at once sets memory aside for all, however few there are."""
    parts = []
    while count > 0 and (part := stream.read(min(count, PIECE))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def unreadable(path: Path, error: Exception) -> MidblockError:
    """Turn the system's refusal to read a file into one line for the user."""
    return MidblockError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}")


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))
    return next((name for fits, name in kinds if fits(mode)), "device")


def check_plain_folder(folder: Path) -> None:
    """Do nothing if a folder can be read and holds files, links and folders only.

    For folders whose files are opened by other libraries, which do not ask what they open.

    Raises:
        MidblockError: it cannot, or holds something else; that is named.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                mode = entry.stat().st_mode if os.path.exists(entry) else stat.S_IFREG
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    raise MidblockError(f"{entry.path} is a {_kind(mode)}, no file", hint="a model's folder has none")
    except (OSError, ValueError) as error:
        raise unreadable(folder, error) from error
