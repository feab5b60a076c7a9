"""A store of tensors by name, in memory and on disk once they are more than a bound: what a walk block by block holds.

What goes to disk goes there as sealed pieces (`Pieces`), so that the same files bound the memory and let a killed walk
go on. Cost: each tensor is written once, and read again, checked by nothing but its piece's seal, when it is asked for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import torch
from safetensors import safe_open
from torch import Tensor

from midblock.trace.pieces import SAVE_SECONDS, Pieces

STEP = "step"  # the name under which a piece says of which step it is


@dataclass(eq=False)
class TensorStore:
    """Tensors of numbered steps.

    Attributes:
        folder: where pieces go; None for a temporary one, made when it is needed and removed in the end.
        limit: bytes held in memory; None for no bound.
        owner: fingerprint of the run.
        seconds: least time between two pieces that are written though memory is not short.
        done: steps that are done.
    """

    folder: Path | None
    limit: int | None
    owner: str = ""
    seconds: float = SAVE_SECONDS
    done: int = 0
    _held: dict[str, Tensor] = field(default_factory=dict)
    _unsaved: set[str] = field(default_factory=set)
    _places: dict[str, int] = field(default_factory=dict)
    _bytes: int = 0
    _pieces: Pieces | None = None
    _temporary: tempfile.TemporaryDirectory[str] | None = None

    def restore(self, piece: Mapping[str, Tensor]) -> None:
        """Learn what a piece holds; its tensors stay on disk."""
        step = int(piece[STEP])
        self._places |= dict.fromkeys((name for name in piece if name != STEP), step)

    def resume(self) -> tuple[int, list[str]]:
        """Take in what an earlier process left: how many steps it did, and what a reader must know of dropped pieces.

        Raises:
            MidblockError: a piece that another run kept.
        """
        if self.folder is not None:
            self._pieces = Pieces(self, self.folder, self.seconds, self.owner)
            self.done = self._pieces.restore()
            return self.done, self._pieces.notes
        return 0, []

    @property
    def saved(self) -> int:
        """Steps whose tensors are on disk."""
        return self._pieces.kept if self._pieces is not None else 0

    def put(self, name: str, values: Tensor) -> None:
        """Keep a tensor; one of that name before it is forgotten. It goes to disk where memory is short."""
        self._forget(name)
        values = values.detach()
        self._held[name] = values.cpu() if values.device.type != "cpu" else values
        self._unsaved.add(name)
        self._bytes += values.nbytes

    def get(self, name: str) -> Tensor:
        """A tensor, on the CPU; not to be written to.

        Raises:
            KeyError: none was kept under that name.
        """
        if name in self._held:
            return self._held[name]
        with safe_open(self._file(self._places[name]), framework="pt") as opened:
            found: Tensor = opened.get_tensor(name).clone()
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._held or name in self._places

    def let_go(self, name: str) -> None:
        """Say that a tensor is not needed any more; it stays on disk for a walk that is taken up there."""
        if name not in self._unsaved or self._pieces is None:
            self._forget(name)

    def drop(self, name: str) -> None:
        """Forget a tensor for good; a temporary piece that holds nothing else is removed."""
        self._forget(name)
        step = self._places.pop(name, None)
        if self._temporary is not None and step is not None and step not in self._places.values():
            self._file(step).unlink(missing_ok=True)

    def step(self, done: int, *, last: bool = False) -> None:
        """Tell that `done` steps are done; writes a piece when it is time, and when memory is short."""
        self.done = done
        short = self.limit is not None and self._bytes > self.limit
        if self._pieces is None and short:
            self._temporary = tempfile.TemporaryDirectory(prefix="midblock-")
            self._pieces = Pieces(self, Path(self._temporary.name), self.seconds, self.owner)
        if self._pieces is None:
            return
        self._pieces.step(done, last=last or short)
        if short:  # all of it lies on disk now
            for name in [each for each in self._held if each not in self._unsaved]:
                self._bytes -= self._held.pop(name).nbytes

    def take_unsaved(self) -> dict[str, Tensor]:
        """What came since the last call, for a piece."""
        piece = {name: self._held[name] for name in sorted(self._unsaved)}
        self._places |= dict.fromkeys(piece, self.done)
        self._unsaved.clear()
        return {**piece, STEP: torch.tensor(self.done)}

    def __enter__(self) -> TensorStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget all of it; pieces in a folder that was given stay for whoever goes on."""
        self._held.clear()
        self._places.clear()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _forget(self, name: str) -> None:
        if name in self._held:
            self._bytes -= self._held.pop(name).nbytes
            self._unsaved.discard(name)

    def _file(self, step: int) -> Path:
        if self._pieces is None or self._pieces.folder is None:
            raise KeyError(step)
        return self._pieces.folder / f"{step:06d}.safetensors"


@dataclass(frozen=True)
class KeptStates(Mapping[int, Tensor]):
    """The states of a pass by layer, wherever they are kept."""

    kept: TensorStore
    prefix: str
    layers: tuple[int, ...]

    def __getitem__(self, layer: int) -> Tensor:
        return self.kept.get(f"{self.prefix}|{layer}")

    def __iter__(self) -> Iterator[int]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


@dataclass(frozen=True)
class KeptRows(Mapping[tuple[str, int], Tensor]):
    """The rows of a pass by reduction and layer, wherever they are kept."""

    kept: TensorStore
    prefix: str
    places: tuple[tuple[str, int], ...]

    def __getitem__(self, place: tuple[str, int]) -> Tensor:
        return self.kept.get("|".join(map(str, (self.prefix, *place))))

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)
