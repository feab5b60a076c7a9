"""What an unfinished steering has found so far, a file for each value.

Texts, answers and means are few and large, and one follows from another: no rows of numbered steps, as in `run_steps`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from midblock.base import write_json
from midblock.evaluation import TokenMean


@dataclass(frozen=True)
class Kept:
    """Values by name.

    Attributes:
        folder: where they lie; None to keep nothing.
    """

    folder: Path | None

    def value(self, name: str, make: Callable[[], Any]) -> Any:
        """Read a JSON value, or make and keep it."""
        if self.folder is None:
            return make()
        file = self.folder / f"{name}.json"
        if not file.exists():
            write_json(file, make())
        return json.loads(file.read_text(encoding="utf-8"))

    def mean(self, name: str, seed: int, make: Callable[[], TokenMean]) -> TokenMean:
        """The same for a mean over tokens: each prompt's sum is kept, to the bit."""

        def parts() -> list[list[float]]:
            made = make()
            return [made.index.tolist(), made.sums.tolist(), made.counts.tolist()]

        index, sums, counts = self.value(name, parts)
        return TokenMean.of(
            torch.tensor(index), torch.tensor(sums, dtype=torch.float64), torch.tensor(counts), seed=seed
        )
