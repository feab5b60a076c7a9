"""The checkpoint to go on from: the last one that is whole, looked over before it is believed."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from midblock.base import MidblockError
from midblock.tuning.loop.seal import SEAL, broken, check_files, read_seal

PREFIX = "checkpoint-"
STATE = "trainer_state.json"  # the Trainer writes this one last, and midblock its seal behind it
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError)  # what reading an archive raises, beside its own errors
UNSEALED = (
    "The run went on from a checkpoint without checksums, of an earlier midblock: it could be looked over only roughly."
)


@dataclass(frozen=True)
class Waypoint:
    """A checkpoint to go on from.

    Attributes:
        path: its folder.
        step: optimiser steps that are behind it.
        carried: what the loop kept beside what the Trainer writes.
        sealed: its files were compared with their checksums.
    """

    path: Path
    step: int
    carried: Mapping[str, Any] = field(default_factory=dict)
    sealed: bool = True

    @classmethod
    def last(cls, folder: Path) -> Waypoint | None:
        """The last whole checkpoint, if there is one.

        Raises:
            MidblockError: the checkpoint is damaged; the file is named.
        """
        found = last_checkpoint(folder)
        if found is None:
            return None
        path, step = found
        if not (path / SEAL).is_file():
            return cls(path, step, sealed=False)
        return cls(path, step, read_seal(path)["carried"])

    def check(self, steps: int) -> None:
        """Look over what will be read.

        Args:
            steps: how many the plan has.

        Raises:
            MidblockError: it lies beyond the plan, or one of its files is damaged; the file is named.
        """
        if self.step > steps:
            what = f"{self.path} lies beyond the plan, which has {steps} steps"
            raise MidblockError(what, hint="remove it, and --resume goes on from the one before it")
        if self.sealed:
            check_files(self.path, read_seal(self.path)["files"])
            if _step(self.path) != self.step:
                raise broken(self.path / STATE, self.path)


def last_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """Find the newest whole checkpoint and its step; remove newer ones that a kill left half written.

    Of checkpoints of which none is sealed, as earlier versions wrote them, the Trainer's last file marks a whole one.
    """
    found = sorted((int(path.name.removeprefix(PREFIX)), path) for path in folder.glob(f"{PREFIX}*") if _numbered(path))
    sealed = {path for _, path in found if (path / SEAL).exists()}
    for step, path in reversed(found):
        if path in sealed or (not sealed and _step(path) == step):
            return path, step
        shutil.rmtree(path, ignore_errors=True)
    return None


def check_whole(checkpoint: Path) -> None:
    """Look whether weights, optimiser, schedule and random state can be read; the Trainer passes over what is missing.

    Args:
        checkpoint: a folder that the Trainer wrote without FSDP.

    Raises:
        MidblockError: naming the file.
    """
    weights = sorted(checkpoint.glob("*.safetensors")) or [checkpoint / "*.safetensors"]
    random = sorted(checkpoint.glob("rng_state*.pth")) or [checkpoint / "rng_state.pth"]
    pickled = [checkpoint / "optimizer.pt", checkpoint / "scheduler.pt", *random]
    for file in (*(file for file in pickled if _damaged_archive(file)), *(file for file in weights if _broken(file))):
        raise broken(file, checkpoint)


def _numbered(path: Path) -> bool:
    number = path.name.removeprefix(PREFIX)
    return number.isascii() and number.isdecimal()


def _step(checkpoint: Path) -> int | None:
    """The step that the Trainer's state is of; None where it cannot be read."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return state.get("global_step") if isinstance(state, dict) else None


def _damaged_archive(file: Path) -> bool:
    """Whether it is no archive as torch writes it, or one whose checksums do not fit."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is not None
    except (*UNREADABLE, zipfile.BadZipFile, zlib.error, struct.error):
        return True


def _broken(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt"):
            return False
    except (OSError, SafetensorError):
        return True
