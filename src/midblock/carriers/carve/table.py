"""The necessity table: each contender by each measure, with paired intervals against the tuned model and the base.

`part` is how much of what tuning added a contender shows, (x − base)/(tuned − base), resampled over the same prompts;
defined where tuning moved the measure at all, by an interval that leaves out 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midblock.base import Estimate
from midblock.base.frame_files import read_frame, write_frame
from midblock.carriers.carve.contenders import BASE, TUNED, Contender
from midblock.carriers.carve.measures import Measure
from midblock.carriers.carve.measuring import Found
from midblock.evaluation.paired import Marks, paired
from midblock.evaluation.token_mean import part_of_way

if TYPE_CHECKING:
    import pandas as pd

NAME = "necessity"
TEXTS = ("contender", "kind", "side", "measure", "unit")
COUNTS = ("n", "entries", "bytes")
SIDES = (TUNED, BASE)
AGAINST = tuple(f"{side}_{end}" for side in SIDES for end in ("difference", "low", "high", "p"))
COLUMNS = (*TEXTS, "value", "low", "high", "n", *AGAINST, "part", "part_low", "part_high", "entries", "bytes")


def necessity_rows(
    contenders: Sequence[Contender], measures: Sequence[Measure], found: Found, seed: int
) -> list[dict[str, Any]]:
    """A row for each contender and measure, with the columns of COLUMNS; NaN where something is not defined."""
    rows = []
    for measure in measures:
        ends = {side: found[side, measure.name] for side in SIDES}
        moved = is_moved(paired(ends[BASE], ends[TUNED], seed).difference)
        for contender in contenders:
            marks = found[contender.name, measure.name]
            rows.append(_row(contender, measure, marks, ends, moved, seed))
    return rows


def is_moved(difference: Estimate) -> bool:
    """Whether an interval leaves out 0."""
    return difference.low > 0 or difference.high < 0


def _row(
    contender: Contender, measure: Measure, marks: Marks, ends: Mapping[str, Marks], moved: bool, seed: int
) -> dict[str, Any]:
    level = marks.mean(seed).interval
    candidate = contender.candidate
    row: dict[str, Any] = {
        "contender": contender.name,
        "kind": contender.kind,
        "side": contender.side,
        "measure": measure.name,
        "unit": measure.unit,
        **_ends("value", level),
        "n": level.n,
    }
    for side, other in ends.items():
        row |= _against(side, other, marks, contender.name == side, seed)
    value, low, high = _part(marks, ends, seed) if moved else (math.nan,) * 3
    sizes = {"entries": candidate.entries if candidate else 0, "bytes": candidate.bytes if candidate else 0}
    return {**row, "part": value, "part_low": low, "part_high": high, **sizes}


def _against(side: str, other: Marks, marks: Marks, itself: bool, seed: int) -> dict[str, float]:
    if itself:
        return {f"{side}_{end}": math.nan for end in ("difference", "low", "high", "p")}
    told = paired(other, marks, seed)
    difference = told.difference
    ends = {"difference": difference.value, "low": difference.low, "high": difference.high, "p": told.p}
    return {f"{side}_{end}": value for end, value in ends.items()}


def _part(marks: Marks, ends: Mapping[str, Marks], seed: int) -> tuple[float, float, float]:
    start, there, end = (each.mean(seed) for each in (ends[BASE], marks, ends[TUNED]))
    low, high = part_of_way(start, there, end, seed=seed)
    return (there.value - start.value) / (end.value - start.value), low, high


def _ends(name: str, level: Estimate) -> dict[str, float]:
    return {name: level.value, "low": level.low, "high": level.high}


def necessity_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows as a table whose columns have one type each."""
    import pandas as pd

    kinds = {name: "str" if name in TEXTS else "Int64" if name in COUNTS else "float64" for name in COLUMNS}
    return pd.DataFrame.from_records(list(rows), columns=list(COLUMNS)).astype(kinds)


def write_necessity(frame: pd.DataFrame, folder: Path) -> None:
    """Write `necessity.parquet` and the same rows as `necessity.csv`."""
    write_frame(frame, folder, NAME, TEXTS)


def read_necessity(folder: Path) -> pd.DataFrame:
    """Read a finished run's table back.

    Raises:
        MidblockError: it is missing or broken.
    """
    return read_frame(folder / f"{NAME}.parquet", COLUMNS)
