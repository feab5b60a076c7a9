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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midblock.base import MidblockError, write_json
from midblock.base.files import write_failure

SEAL = "seal.json"
THREADS = 4  # hashing lets other threads run; more gain nothing on one disk


@dataclass(frozen=True)
class Seal:
    """What a checkpoint consisted of when it was whole.

    Attributes:
        files: SHA-256 by path inside the checkpoint.
        carried: what the loop keeps beside what the Trainer writes; JSON values.
    """

    files: Mapping[str, str]
    carried: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Path, carried: Mapping[str, Any]) -> Seal:
        """Hash what is there."""
        names = _files(checkpoint)
        with ThreadPoolExecutor(THREADS) as threads:
            digests = threads.map(_digest, (checkpoint / name for name in names))
            return cls(dict(zip(names, digests, strict=True)), dict(carried))

    @classmethod
    def read(cls, checkpoint: Path) -> Seal:
        """Read the seal of a checkpoint.

        Raises:
            MidblockError: it is missing or broken.
        """
        file = checkpoint / SEAL
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            seal = cls(dict(found["files"]), dict(found["carried"]))
            whole = found["digest"] == seal._digest()
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise broken(file, checkpoint)
        return seal

    def write(self, checkpoint: Path) -> None:
        """Put it beside the files, last, under its name only when it is whole."""
        write_json(checkpoint / SEAL, {"files": self.files, "carried": self.carried, "digest": self._digest()})

    def check(self, checkpoint: Path) -> None:
        """Compare it with the files.

        Raises:
            MidblockError: one of them is missing, is not what was written, or was put there later; it is named.
        """
        now = set(_files(checkpoint))
        for name in sorted(self.files.keys() - now):
            raise broken(checkpoint / name, checkpoint)
        for name in sorted(now - self.files.keys()):
            what = f"{checkpoint / name} was put into the checkpoint after it was written"
            raise MidblockError(what, hint="take it out again")
        try:
            found = Seal.of(checkpoint, {}).files
        except OSError as error:
            raise MidblockError(f"cannot read {checkpoint}: {error.strerror}") from error
        for name, digest in self.files.items():
            if found[name] != digest:
                raise broken(checkpoint / name, checkpoint)

    def _digest(self) -> str:
        text = json.dumps([self.files, self.carried], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def seal(checkpoint: Path, carried: Mapping[str, Any]) -> None:
    """Seal a checkpoint that every process has written its part of.

    Raises:
        MidblockError: the disk is full, or the place cannot be read or written.
    """
    try:
        Seal.of(checkpoint, carried).write(checkpoint)
    except OSError as error:
        raise write_failure(checkpoint / SEAL, error) from error


def broken(file: Path, checkpoint: Path) -> MidblockError:
    """The error for a file of a checkpoint that cannot be gone on from."""
    hint = f"remove {checkpoint}, and --resume goes on from the one before it"
    return MidblockError(f"{file} is missing or broken", hint=hint)


def _files(checkpoint: Path) -> list[str]:
    """The files that a checkpoint consists of; hidden ones are the file system's own."""
    found = (path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if path.name != SEAL and not path.name.startswith("."))


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
