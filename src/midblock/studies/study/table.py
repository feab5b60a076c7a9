"""trials.parquet and trials.csv: a row for each trial, task and metric of a study."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midblock.base import MidblockError
from midblock.base.frame_files import read_frame, write_frame
from midblock.studies.study.results import Result
from midblock.studies.study.rounds import Point, point_of
from midblock.studies.study.trials import BASE, Trial

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = ("value", "low", "high", "n", "no_answer", "cut", "parameters", "peak_memory_gb", "seconds")
FIRST = ("trial", "arm")
LAST = ("seed", "share", "chosen", "items", "task", "metric", *NUMBERS, "status", "error")
TESTED, VALIDATED = "test", "validation"  # which items a row is about


def rows_of(
    trials: Sequence[Trial],
    scouts: Sequence[Trial],
    results: Mapping[str, Result],
    chosen: Sequence[str],
    dropped: Mapping[Point, int],
    keys: Sequence[str],
) -> list[dict[str, Any]]:
    """The rows, the base's first; a trial that told nothing has one without a task.

    Args:
        scouts: trials at a share of their steps, which only helped to choose.
        chosen: names of the trials that were tested.
        dropped: points that successive halving left behind.
        keys: options that differ between trials, a column each.
    """
    found = list(_rows(None, results.get(BASE, Result()), "done", keys))
    for trial in (*trials, *(scout for scout in scouts if scout.name in results)):
        result = results.get(trial.name, Result())
        status = _status(trial, result, chosen, dropped)
        found += [row | {"chosen": trial.name in chosen} for row in _rows(trial, result, status, keys)]
    return found


def keys_of(trials: Sequence[Trial]) -> list[str]:
    """Options that are not the same in all trials, in the order in which they come; the seed has its own column."""
    names = dict.fromkeys(key for trial in trials for key in trial.options if key != "seed")
    return [key for key in names if len({repr(trial.options.get(key)) for trial in trials}) > 1]


def frame_of(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> pd.DataFrame:
    """The rows as a table: texts are texts, numbers numbers."""
    import pandas as pd

    frame = pd.DataFrame(rows, columns=[*FIRST, *keys, *LAST])
    numbers = {name: pd.to_numeric(frame[name]).astype("float64") for name in (*NUMBERS, "share")}
    seeds = {"seed": frame.seed.astype("Int64")}
    mixed = {key: _column(frame[key]) for key in keys}
    texts = {name: frame[name].astype("string") for name in ("trial", "arm", "items", "task", "metric", "status",
                                                             "error")}  # fmt: skip
    return frame.assign(**numbers, **seeds, **mixed, **texts, chosen=frame.chosen.astype(bool))


def write_table(frame: pd.DataFrame, folder: Path) -> None:
    """Write `trials.parquet`, and `trials.csv` as spreadsheets take it."""
    write_frame(frame, folder, "trials", list(frame.select_dtypes("string")))


def read_table(folder: Path) -> pd.DataFrame:
    """Read `trials.parquet` of a study.

    Raises:
        MidblockError: it is missing or broken.
    """
    import pyarrow.parquet

    file = folder / "trials.parquet"
    if not file.exists():
        raise MidblockError(f"no table at {file}", hint="--overwrite makes the study anew")
    return read_frame(file, pyarrow.parquet.read_schema(file).names)


def _column(column: pd.Series[Any]) -> pd.Series[Any]:
    """Numbers as numbers where all values are, else text."""
    import pandas as pd

    plain = all(value is None or (type(value) in (int, float) and math.isfinite(value)) for value in column)
    if plain:
        return pd.to_numeric(column)
    return column.map(lambda value: value if value is None or isinstance(value, str) else str(value)).astype("string")


def _status(trial: Trial, result: Result, chosen: Sequence[str], dropped: Mapping[Point, int]) -> str:
    if result.failed:
        return "failed"
    if trial.share < 1:
        return "rung"
    if point_of(trial) in dropped:
        return "dropped"
    if trial.name in chosen:
        return "done"
    return "not chosen" if result.files else "not run"


def _rows(trial: Trial | None, result: Result, status: str, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    tuned = result.files.get("tune", {})
    common = {
        "trial": BASE if trial is None else trial.name,
        "arm": BASE if trial is None else trial.arm,
        **{key: None if trial is None else trial.options.get(key) for key in keys},
        "seed": None if trial is None else trial.seed,
        "share": None if trial is None else trial.share,
        "parameters": tuned.get("parameters"),
        "peak_memory_gb": result.peak_memory_gb,
        "seconds": round(result.seconds, 3),
        "status": "failed" if result.failed else status,
        "error": result.failed,
        "chosen": False,
    }
    told = [(items, each) for items, stage in ((VALIDATED, "validate"), (TESTED, "evaluate"))
            for each in result.tasks(stage)]  # fmt: skip
    for items, each in told:
        numbers = {name: each.get(name) for name in ("value", "low", "high", "n", "no_answer", "cut")}
        yield {**common, "items": items, "task": each["task"], "metric": each["metric"], **numbers}
    if not told:
        yield {**common, "items": "", "task": "", "metric": ""}
