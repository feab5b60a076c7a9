"""The training log as columns: broken lines skipped, long ones shortened, curves smoothed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float

from midblock.base import MidblockError
from midblock.base.plain_file import check_plain_file
from midblock.base.table_rules import MOST_BLOCKS
from midblock.runs.lenient import as_number, parsed

MOST = 50_000  # lines that are kept of a log
DIGITS = len(str(MOST_BLOCKS))  # of a block's number
LONGEST_LINE = 2**20  # bytes
LONGEST = 1200  # points of a curve; beyond it each is the mean of several logged steps
SMOOTHED = 12  # fewer points than this are not smoothed
WIDTH = 0.02  # of the smoothing kernel, as a share of the points


@dataclass(frozen=True)
class Log:
    """Logged optimizer steps in their order, each step once."""

    lines: Sequence[Mapping[str, Any]]

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Log:
        """Read JSON lines. A killed run leaves half a line, a resumed one repeats steps: the later counts."""
        found: dict[int, Mapping[str, Any]] = {}
        for line in lines:
            entry = parsed(line)
            if isinstance(entry, dict) and type(entry.get("step")) is int:
                found[entry["step"]] = entry
        return cls(tuple(found[step] for step in sorted(found)))

    @classmethod
    def read(cls, file: Path) -> Log:
        """Read a file of JSON lines; of a long one every second, third, … line, so that `MOST` remain."""
        try:
            check_plain_file(file)
            with file.open("rb") as stream:
                count = sum(1 for _ in _lines(stream))
                stream.seek(0)
                return cls.parse(islice(_lines(stream), None, None, max(1, -(-count // MOST))))
        except (MidblockError, OSError):
            return cls(())

    def __len__(self) -> int:
        return len(self.lines)

    @cached_property
    def steps(self) -> list[int]:
        return [line["step"] for line in self.lines]

    def column(self, key: str) -> Float[np.ndarray, "steps"]:
        """One quantity ("tokens_per_second" is worked out), NaN where a line lacks it."""
        if key == "tokens_per_second":
            return self.speed
        return np.array([as_number(line.get(key)) for line in self.lines], dtype=float)

    @cached_property
    def speed(self) -> Float[np.ndarray, "steps"]:
        """Tokens a second since the line before; NaN at the first line and where a resumed run's clock begins anew."""
        tokens, seconds = (np.diff(self.column(key), prepend=np.nan) for key in ("tokens", "seconds"))
        usable = (tokens > 0) & (seconds > 0)
        return np.divide(tokens, seconds, out=np.full(len(self), np.nan), where=usable)

    def has(self, key: str) -> bool:
        return bool(np.isfinite(self.column(key)).any())

    @cached_property
    def places(self) -> list[str]:
        """Where the gradient was measured, from the embedding through the blocks to the head."""
        found = {place for line in self.lines for place, value in _norms(line).items() if math.isfinite(value)}
        return sorted(found, key=_depth)

    def gradient(self, place: str) -> Float[np.ndarray, "steps"]:
        """Norm of the gradient at one place."""
        return np.array([_norms(line).get(place, math.nan) for line in self.lines], dtype=float)


def _lines(stream: BinaryIO) -> Iterator[str]:
    """The lines of a file, one without end in parts."""
    while line := stream.readline(LONGEST_LINE):
        yield line.decode("utf-8", errors="replace")


def groups(count: int, most: int = LONGEST) -> list[slice]:
    """Cut `count` points into at most `most` groups of equal size (the last may be smaller)."""
    size = max(1, -(-count // most))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def averaged(values: Float[np.ndarray, "points"], parts: Sequence[slice]) -> Float[np.ndarray, "parts"]:
    """Mean of each group, over the values it has."""
    means = [np.nan if np.isnan(values[part]).all() else np.nanmean(values[part]) for part in parts]
    return np.array(means, dtype=float)


def smoothed(values: Float[np.ndarray, "points"]) -> Float[np.ndarray, "points"]:
    """Average over neighbours with a Gaussian weight, so that the curve does not lag; NaN where there was no value."""
    if np.isfinite(values).sum() < SMOOTHED:
        return values
    place = np.arange(len(values))
    known = np.isfinite(values)
    width = max(1.5, WIDTH * len(values))
    weights = np.exp(-0.5 * ((place[:, None] - place[None, known]) / width) ** 2)
    return np.where(known, weights @ values[known] / weights.sum(axis=1).clip(1e-300), np.nan)


def _norms(line: Mapping[str, Any]) -> dict[str, float]:
    norms = line.get("gradient_by_block")
    if not isinstance(norms, dict):
        return {}
    known = {place: value for place, value in norms.items() if not place.isdecimal() or len(place) <= DIGITS}
    return {"embedding" if place == "-1" else place: as_number(value) for place, value in known.items()}


def _depth(place: str) -> tuple[int, int, str]:
    if place.isdecimal():
        return 1, int(place), ""
    return (0 if place == "embedding" else 2), 0, place
