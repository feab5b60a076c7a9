"""Evaluation: what an evaluation found, in memory and as the files of its run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midblock.base import MidblockError, replace_atomically
from midblock.base.frame_files import read_frame, write_frame
from midblock.evaluation.evaluate.forgetting import FORGETTING
from midblock.evaluation.evaluate.tables import COMPARISONS, SCORES

if TYPE_CHECKING:
    import pandas as pd

TABLES: Mapping[str, Sequence[str]] = {"scores": SCORES, "comparisons": COMPARISONS, "forgetting": FORGETTING}
TEXTS = ("model", "task", "metric", "first", "second", "verdict")
COUNTS = ("n", "units", "no_answer", "cut", "failed")
SAMPLES = "samples.jsonl"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores and comparisons.

    Attributes:
        scores: a row for each model and task: `value` with its 95 % interval, `n` items of which `units` are resampled,
            and how many outputs had `no_answer`, were `cut` at the limit of new tokens, or `failed` to be scored (no
            value where a task has no outputs).
        comparisons: a row for each two models on each task: `difference` (second − first) with its 95 % interval, `p`,
            `p_holm` corrected for all of them, the smallest `detectable` difference and the `verdict`.
        forgetting: a row for each model beside the reference; empty where neither targets nor general texts were named.
        samples: each model's output to each item, and what it scored.
        folder: where it was written; None if nowhere.
    """

    scores: pd.DataFrame
    comparisons: pd.DataFrame
    forgetting: pd.DataFrame
    samples: tuple[Mapping[str, Any], ...]
    folder: Path | None = None

    @classmethod
    def of(
        cls,
        rows: Mapping[str, Sequence[Mapping[str, Any]]],
        samples: Sequence[Mapping[str, Any]],
        folder: Path | None = None,
    ) -> Evaluation:
        """From rows, by the names of TABLES."""
        scores, comparisons, forgetting = (_typed(rows[name], columns) for name, columns in TABLES.items())
        return cls(scores, comparisons, forgetting, tuple(samples), folder)

    @classmethod
    def read(cls, folder: Path | str) -> Evaluation:
        """Read a finished run back.

        Raises:
            MidblockError: a file is missing or broken.
        """
        folder = Path(folder)
        scores, comparisons, forgetting = (
            read_frame(folder / f"{name}.parquet", columns) for name, columns in TABLES.items()
        )
        try:
            lines = (folder / SAMPLES).read_text(encoding="utf-8").splitlines()
            samples = tuple(json.loads(line) for line in lines)
        except (OSError, ValueError) as error:
            raise MidblockError(f"{folder / SAMPLES} is missing or broken", hint="--overwrite makes it anew") from error
        return cls(scores, comparisons, forgetting, samples, folder)

    def files(self) -> dict[str, Callable[[Path], None]]:
        """What goes into the run folder, by name: the tables as Parquet and CSV, the samples a line each."""
        frames = {"scores": self.scores, "comparisons": self.comparisons, "forgetting": self.forgetting}
        writers: dict[str, Callable[[Path], None]] = {
            f"{name}.parquet": _writer(frame, name) for name, frame in frames.items()
        }
        return {**writers, SAMPLES: self._write_samples}

    def _write_samples(self, file: Path) -> None:
        with replace_atomically(file) as path, path.open("w", encoding="utf-8") as stream:
            for sample in self.samples:
                stream.write(json.dumps(sample, allow_nan=False) + "\n")


def _writer(frame: pd.DataFrame, name: str) -> Callable[[Path], None]:
    texts = [column for column in frame.columns if column in TEXTS]
    return lambda file: write_frame(frame, file.parent, name, texts)


def _typed(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """A table whose columns have one type each, however many rows there are."""
    import pandas as pd

    kinds = {name: "str" if name in TEXTS else "Int64" if name in COUNTS else "float64" for name in columns}
    return pd.DataFrame.from_records(list(rows), columns=list(columns)).astype(kinds)
