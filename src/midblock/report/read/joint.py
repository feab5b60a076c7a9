"""Joint: several runs read as one, their rows joined under names that stay apart, their depth checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from midblock.base import LayerTable, MidblockError
from midblock.base.names import numbered_apart
from midblock.base.quoting import printable
from midblock.report.read.reading import Run
from midblock.runs.finished import BASE
from midblock.runs.lenient import entries_of, mapping

if TYPE_CHECKING:
    import pandas as pd

KEYS = ["model", "dataset", "layer", "module", "metric"]


@dataclass(frozen=True)
class Joint(Run):
    """Runs that are shown on one page, each with what its folder holds; their rows and summaries as those of one run.

    Attributes:
        runs: in the order they were given, models renamed where two runs tell different numbers under one name.
    """

    runs: tuple[Run, ...] = ()

    @classmethod
    def of(cls, runs: Sequence[Run], colours: tuple[str, ...] = ()) -> Joint:
        """Join runs whose names are apart already (see `told_apart`)."""
        entries = [entry for run in runs if run.traits.describes for entry in entries_of(run.summary, "models")]
        headline = next((run.summary["headline"] for run in runs if run.summary.get("headline")), "")
        first = runs[0] if runs else None
        return cls(
            table=rows_of(runs),
            record=first.record if first else {},
            summary={"headline": headline, "models": entries},
            samples=first.samples if first else [],
            config=first.config if first else "",
            folder=first.folder if first else Path(),
            depth=next((depth for run in runs if (depth := depth_of_run(run))), None),
            order=tuple(_by_colour(runs)),
            colours=colours,
            compared=comparable(runs),
            runs=tuple(runs),
        )

    def of_verb(self, *verbs: str) -> Joint:
        """The runs of some verbs alone, in the colours of the whole."""
        return Joint.of([run for run in self.runs if run.verb in verbs], tuple(self.tuned))


def rows_of(runs: Sequence[Run]) -> LayerTable:
    """All rows, those that several runs give once."""
    joined = LayerTable.concatenate(run.table for run in runs).frame.drop_duplicates(KEYS)
    return LayerTable(joined.reset_index(drop=True))


def _by_colour(runs: Sequence[Run]) -> list[str]:
    """Names of the tuned models in the order of their colours."""
    ordered = sorted(runs, key=lambda run: run.traits.colour)
    return list(dict.fromkeys(name for run in ordered for name in run.table.models if name != BASE))


def comparable(runs: Sequence[Run]) -> LayerTable:
    """The rows of curves to correlate, those of runs that are asked about it last."""
    always = [run for run in runs if run.traits.compared is None]
    asked = [run for run in runs if run.traits.compared is not None and run.traits.compared(run)]
    return rows_of([*always, *asked])


def depth_of_run(run: Run) -> int | None:
    """L, None where the run does not tell it."""
    return run.table.blocks if run.measured else run.depth


def check_depths(runs: Sequence[Run]) -> None:
    """Refuse runs of models of different depth.

    Raises:
        MidblockError: two of them differ.
    """
    known = [(run, depth) for run in runs if (depth := depth_of_run(run))]
    for run, depth in known:
        first, blocks = known[0]
        if depth != blocks:
            raise MidblockError(
                f"{first.folder} is about a model of {blocks} blocks, {run.folder} about one of {depth}",
                hint="one page shows runs of models of one depth",
            )


def told_apart(runs: Sequence[Run]) -> list[Run]:
    """Rename a model in a later run, by its folder, where an earlier run gives other numbers under the same name."""
    labels = labels_of(runs)
    apart: list[Run] = []
    for run, label in zip(runs, labels, strict=True):
        known = LayerTable.concatenate(other.table for other in apart).frame
        both = run.table.frame.merge(known, on=KEYS, suffixes=("", "_before"))
        clashing = list(map(str, both[_differ(both)].model.unique()))
        taken = [*run.table.models, *known.model.unique()]
        new = numbered_apart([f"{name} ({printable(label)})" for name in clashing], taken)
        apart.append(_renamed(run, dict(zip(clashing, new, strict=True))))
    return apart


def labels_of(runs: Sequence[Run]) -> list[str]:
    """A short name for each run: its folder's, with the parents' where folders are called the same."""
    paths = [run.folder.resolve() for run in runs]
    for depth in (1, 2, 3, 4):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _differ(both: pd.DataFrame) -> np.ndarray:
    different = np.zeros(len(both), dtype=bool)
    for column in ("value", "low", "high"):
        a, b = both[column].to_numpy(float), both[f"{column}_before"].to_numpy(float)
        different |= ~np.isclose(a, b, rtol=1e-6, atol=0, equal_nan=True)
    return different


def _renamed(run: Run, names: Mapping[str, str]) -> Run:
    if not names:
        return run
    frame = run.table.frame.assign(model=run.table.frame.model.map(lambda name: names.get(name, name)))
    entries = [{**entry, "name": names.get(str(entry.get("name")), entry.get("name"))}
               for entry in entries_of(run.summary, "models")]  # fmt: skip
    summary: dict[str, Any] = {**run.summary, "models": entries}
    if (tuned := str(run.summary.get("tuned"))) in names:
        summary["tuned"] = names[tuned]
    return replace(run, table=LayerTable(frame.astype({"model": "string"})), summary=summary)


def bases_of(runs: Sequence[Run]) -> list[str]:
    """The different base models the runs are about, told apart by their weights' hash where it is known."""
    found: list[tuple[str, str]] = []  # reference, hash
    for run in runs:
        for model in entries_of(run.record, "models"):
            entry = str(model.get("reference") or ""), str(model.get("weight_hash") or "")
            if model.get("role") == BASE and entry[0] and not any(_same_base(entry, known) for known in found):
                found.append(entry)
    return [reference for reference, _ in found]


def _same_base(a: tuple[str, str], b: tuple[str, str]) -> bool:
    """Equal weights where both are hashed (some verbs hash on request only), else the same reference."""
    return a[1] == b[1] if a[1] and b[1] else a[0] == b[0]


def prompts_of(run: Run, metrics: str) -> str:
    """On how many prompts the metrics that begin so were measured, as "64 prompts"; "" where it is not known."""
    frame = run.table.frame
    counts = sorted({int(n) for n in frame[frame.metric.str.startswith(metrics)].n if n > 0})
    if not counts:
        return ""
    said = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{said} prompt{'s' * (counts[-1] != 1)}"


def data_of(run: Run) -> str:
    """The dataset's reference, "" where none is recorded."""
    return str(mapping(run.record, "data").get("reference") or "")
