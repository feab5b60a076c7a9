"""What an unfinished steering has found so far, a file for each value.

Texts, answers and means are few and large, and one follows from another: no rows of numbered steps, as in `run_steps`.
Like pieces, a file says whose it is and what it holds (`base.seal`): a damaged one is made again, another's refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from midblock.base import MidblockError, write_json
from midblock.base.clusters import Clusters
from midblock.base.files import write_failure
from midblock.base.seal import DamagedError, Seal
from midblock.evaluation import TokenMean
from midblock.interventions.steer.directions import Directions
from midblock.interventions.steer.source import FILE
from midblock.trace.sealed import read_sealed, write_sealed


@dataclass(frozen=True)
class KeptValues:
    """Values by name.

    Attributes:
        folder: where they lie; None to keep nothing.
        owner: fingerprint of the run.
        notes: what a reader must know of files that were damaged.
        clusters: which examples are variants of one question, by their places.
    """

    folder: Path | None
    owner: str = ""
    notes: list[str] = field(default_factory=list)
    clusters: Clusters | None = None

    def value(self, name: str, make: Callable[[], Any]) -> Any:
        """Read a JSON value, or make and keep it.

        Raises:
            MidblockError: another run kept it, or the disk is full.
        """
        if self.folder is None:
            return make()
        file = self.folder / f"{name}.json"
        if not file.exists():
            self._write(file, make())
        try:
            return self._read(file)
        except DamagedError:
            self._make_way(file)
            return self.value(name, make)

    def mean(self, name: str, seed: int, make: Callable[[], TokenMean]) -> TokenMean:
        """The same for a mean over tokens: each prompt's sum is kept, to the bit."""

        def parts() -> list[list[float]]:
            made = make()
            return [made.index.tolist(), made.sums.tolist(), made.counts.tolist()]

        index, sums, counts = self.value(name, parts)
        totals = torch.tensor(index), torch.tensor(sums, dtype=torch.float64), torch.tensor(counts)
        return TokenMean.of(*totals, seed=seed, clusters=self.clusters)

    def directions(self, make: Callable[[], Directions]) -> Directions:
        """The same for directions, tensors in a file of their own."""
        file = None if self.folder is None else self.folder / FILE
        if file is not None and file.exists():
            try:
                tensors, holds = read_sealed(file, self.owner)
                return Directions.of_tensors(tensors, holds)
            except DamagedError:
                self._make_way(file)
        made = make()
        if file is not None:
            write_sealed(file, made.tensors, self.owner, made.facts)
        return made

    def _write(self, file: Path, value: Any) -> None:
        holds = {"value": file.stem}
        write_json(file, {"seal": Seal.of(self.owner, holds, [_bytes(value)]).as_record(), "value": value})

    def _read(self, file: Path) -> Any:
        try:
            text = file.read_bytes()
        except OSError as error:
            raise MidblockError(f"cannot read {file}: {error.strerror or error}") from error
        try:
            found = json.loads(text)
            seal, value = found["seal"], found["value"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DamagedError(f"{file.name} is damaged") from error
        if Seal.check(seal, file, [_bytes(value)], self.owner) != {"value": file.stem}:
            raise DamagedError(f"{file.name} is a copy of another")
        return value

    def _make_way(self, file: Path) -> None:
        try:
            file.unlink()
        except OSError as error:
            raise write_failure(file, error) from error
        self.notes.append(f"Of what was kept when the run was stopped, {file.name} was damaged: it was made again.")


def _bytes(value: Any) -> bytes:
    """What the checksum of a JSON value is taken of: the same before it is written and after it is read."""
    return json.dumps(value, sort_keys=True).encode()
