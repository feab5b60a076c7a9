"""The seal of a checkpoint: the SHA-256 of each of its files, written last, compared before they are believed.

It finds every byte that changed by accident. It is no proof of who wrote a folder: whoever can write the files can seal
them; what is pickled in them is read as tensors and numbers only, by the Trainer. Cost: each file is read once when it
was written, out of the page cache, and once on resuming: 1 to 2 GB a second where the processor hashes by itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from midblock.base import MidblockError, write_json
from midblock.base.files import write_failure
from midblock.base.seal import DamagedError, Seal

SEAL = "seal.json"
OWNER = "checkpoint"  # which run it is of is told by the folder that it lies in
THREADS = 4  # hashing lets other threads run; more gain nothing on one disk


def seal(checkpoint: Path, carried: Mapping[str, Any]) -> None:
    """Seal a checkpoint that every process has written its part of; the seal appears when it is whole.

    Args:
        carried: what the loop keeps beside what the Trainer writes; JSON values.

    Raises:
        MidblockError: the disk is full, or the place cannot be read or written.
    """
    try:
        holds = {"files": _hashed(checkpoint), "carried": dict(carried)}
        write_json(checkpoint / SEAL, Seal.of(OWNER, holds, ()).as_record())
    except OSError as error:
        raise write_failure(checkpoint / SEAL, error) from error


def read_seal(checkpoint: Path) -> Mapping[str, Any]:
    """Read what `seal` kept: `files`, the SHA-256 by path inside the checkpoint, and `carried`.

    Raises:
        MidblockError: it is missing or broken, or of another format.
    """
    file = checkpoint / SEAL
    try:
        return Seal.check(json.loads(file.read_text(encoding="utf-8")), file, (), OWNER)
    except (OSError, ValueError, RecursionError, DamagedError) as error:
        raise broken(file, checkpoint) from error


def check_files(checkpoint: Path, files: Mapping[str, str]) -> None:
    """Compare a checkpoint with what it consisted of when it was sealed.

    Raises:
        MidblockError: a file is missing, is not what was written, or was put there later; it is named.
    """
    now = set(_files(checkpoint))
    for name in sorted(files.keys() - now):
        raise broken(checkpoint / name, checkpoint)
    for name in sorted(now - files.keys()):
        what = f"{checkpoint / name} was put into the checkpoint after it was written"
        raise MidblockError(what, hint="take it out again")
    try:
        found = _hashed(checkpoint)
    except OSError as error:
        raise MidblockError(f"cannot read {checkpoint}: {error.strerror}") from error
    for name, digest in files.items():
        if found[name] != digest:
            raise broken(checkpoint / name, checkpoint)


def broken(file: Path, checkpoint: Path) -> MidblockError:
    """The error for a file of a checkpoint that cannot be gone on from."""
    hint = f"remove {checkpoint}, and --resume goes on from the one before it"
    return MidblockError(f"{file} is missing or broken", hint=hint)


def _hashed(checkpoint: Path) -> dict[str, str]:
    names = _files(checkpoint)
    with ThreadPoolExecutor(THREADS) as threads:
        return dict(zip(names, threads.map(_digest, (checkpoint / name for name in names)), strict=True))


def _files(checkpoint: Path) -> list[str]:
    """The files that a checkpoint consists of; hidden ones are the file system's own."""
    found = (path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if path.name != SEAL and not path.name.startswith("."))


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
