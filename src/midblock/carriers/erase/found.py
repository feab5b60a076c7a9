"""Found: what the training of a soft prompt has found so far, kept between two lives of a run (`base.seal`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from midblock.base.seal import DamagedError
from midblock.trace.sealed import read_sealed, write_sealed

NUMBERS = ("step", "best_step", "best_loss", "curve", "seen")


@dataclass(eq=False)
class Found:
    """What the training of one start has found so far.

    Attributes:
        step: steps behind it.
        prompt: P as it is now.
        moments: Adam's two, as P.
        best: P where J of the held-out prompts was lowest.
        best_step, best_loss: when that was, and J then.
        first: P of the start.
        curve: by validation, step, J of the training's batches since the last one, then J, the states' distance and
            the divergence on held-out prompts.
        seen: J of each batch since the last validation.
    """

    prompt: Tensor
    moments: tuple[Tensor, Tensor]
    best: Tensor
    first: Tensor
    step: int = 0
    best_step: int = 0
    best_loss: float = float("inf")
    curve: list[list[float | None]] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)

    @classmethod
    def start(cls, prompt: Tensor) -> Found:
        """Nothing found yet."""
        zeros = torch.zeros_like(prompt)
        return cls(prompt.clone(), (zeros.clone(), zeros.clone()), prompt.clone(), prompt.clone())

    def write(self, file: Path, owner: str) -> None:
        tensors = {"prompt": self.prompt, "m": self.moments[0], "v": self.moments[1], "best": self.best}
        write_sealed(file, {**tensors, "first": self.first}, owner, {name: getattr(self, name) for name in NUMBERS})

    @classmethod
    def read(cls, file: Path, owner: str) -> Found:
        tensors, told = read_sealed(file, owner)
        moments = tensors["m"], tensors["v"]
        numbers = {name: told[name] for name in NUMBERS}
        return cls(tensors["prompt"], moments, tensors["best"], tensors["first"], **numbers)


@dataclass(frozen=True)
class Keeping:
    """Where what is found is kept.

    Attributes:
        folder: None to keep nothing.
        owner: fingerprint of the run and of what is trained.
        notes: what a reader must know of files that were damaged.
    """

    folder: Path | None = None
    owner: str = ""
    notes: list[str] = field(default_factory=list)

    def found(self, start: int, fresh: Found) -> Found:
        """What was kept of a start, or a fresh beginning.

        Raises:
            MidblockError: another run kept it.
        """
        file = self._file(start)
        if file is None or not file.exists():
            return fresh
        try:
            return Found.read(file, self.owner)
        except DamagedError:
            self.notes.append(f"What was kept of start {start} was damaged: it was trained anew.")
            return fresh

    def keep(self, start: int, found: Found) -> None:
        """Write it."""
        if (file := self._file(start)) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            found.write(file, self.owner)

    def _file(self, start: int) -> Path | None:
        return None if self.folder is None else self.folder / f"start-{start}.safetensors"
