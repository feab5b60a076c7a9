"""Rows on disk piece by piece, so that a killed pass goes on where it stopped.

A piece says which steps of which plan its rows came from (`base.seal`). Those that follow each other from the first
step on are taken in; from the first one that is damaged, missing or not what its name says they are dropped, and those
steps are done again: nothing is lost but time. One that another run kept is refused.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from midblock.base.files import write_failure
from midblock.base.seal import DamagedError
from midblock.trace.sealed import read_sealed, write_sealed

SAVE_SECONDS = 30.0


@runtime_checkable
class Store(Protocol):
    """What is saved piece by piece (`RowStore`, `TensorStore`)."""

    def take_unsaved(self) -> dict[str, Tensor]:
        """What came since the last call."""
        ...

    def restore(self, piece: Mapping[str, Tensor]) -> None:
        """Take in a piece that `take_unsaved` gave."""
        ...


@dataclass
class Pieces:
    """The state of a pass over numbered steps.

    Attributes:
        store: what is saved.
        folder: where pieces go, None to keep rows in memory only.
        seconds: least time between two pieces.
        owner: fingerprint of the run and of its numbered steps.
        kept: steps whose rows are on disk.
        notes: what a reader must know of pieces that were dropped.
    """

    store: Store
    folder: Path | None
    seconds: float = SAVE_SECONDS
    owner: str = ""
    kept: int = 0
    notes: list[str] = field(default_factory=list)
    saved: float = field(default_factory=time.monotonic)

    def restore(self) -> int:
        """Take in the pieces of an earlier pass; return the number of steps they cover.

        Raises:
            MidblockError: a piece that another run kept, or that the system does not let be read.
        """
        files = sorted(file for file in self.folder.glob("*.safetensors") if _numbered(file)) if self.folder else []
        why, useless = "", []
        for file in files:
            found = self._piece(file)  # also of those behind a gap: a foreign one is refused wherever it lies
            if not why:
                why = f"{file.name} was damaged" if found is None else self._misplaced(file, found[1])
            if found is None or why:
                useless.append(file)
            else:
                self.store.restore(found[0])
                self.kept = int(file.stem)
        if useless:
            self._drop(useless, why)
        return self.kept

    def _piece(self, file: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]] | None:
        try:
            return read_sealed(file, self.owner)
        except DamagedError:
            return None

    def _misplaced(self, file: Path, holds: Mapping[str, Any]) -> str:
        """Why a piece does not follow the one before; "" where it does."""
        first, last = holds.get("first"), holds.get("last")
        if last != int(file.stem):
            return f"{file.name} was a copy of another piece"
        return "" if first == self.kept + 1 else f"the piece before {file.name} was gone"

    def _drop(self, files: list[Path], why: str) -> None:
        for file in files:
            try:
                file.unlink()
            except OSError as error:
                raise write_failure(file, error) from error
        self.notes.append(
            f"Of what was kept when the run was stopped, {why}: from step {self.kept + 1} on it was done again."
        )

    def step(self, done: int, *, last: bool = False) -> None:
        """Tell that `done` steps are done; writes a piece when it is time, and behind the last."""
        if self.folder is None or not (last or time.monotonic() - self.saved >= self.seconds):
            return
        self.saved = time.monotonic()
        if done == self.kept:  # the last batch's own save came just before: an empty piece must not replace it
            return
        holds = {"first": self.kept + 1, "last": done}
        write_sealed(self.folder / f"{done:06d}.safetensors", self.store.take_unsaved(), self.owner, holds)
        self.kept = done


def _numbered(file: Path) -> bool:
    """Whether a file is a piece; a run may keep other tensors in the same folder."""
    return file.stem.isascii() and file.stem.isdigit()
