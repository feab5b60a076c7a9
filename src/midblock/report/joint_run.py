"""Several run folders read as one: their rows joined under names that stay apart, their depth checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from midblock.base import LayerTable, MidblockError
from midblock.metrics.correlation import Correlations, correlate
from midblock.report.reading import BASE, Run, mapping, read_json
from midblock.report.tune_run import TuneRun

if TYPE_CHECKING:
    import pandas as pd

KEYS = ["model", "dataset", "layer", "module", "metric"]
# Models that an analysis names come first, so that they keep their colour when other runs join.
COLOURED = ("analyze", "probe", "swap", "steer", "tune", "merge", "flow")
VERBS = frozenset(COLOURED)
HINT = "give folders written by `midblock analyze`, `tune`, `probe`, `swap`, `steer`, `flow` or `merge`"


@dataclass(frozen=True)
class Joint(Run):
    """Runs that are shown on one page, each with what its folder holds.

    Attributes:
        runs: in the order they were given, models renamed where two runs tell different numbers under one name.
        colours: names of the tuned models in the order of their colours; () where it follows from the runs.
    """

    runs: tuple[Run, ...] = ()
    colours: tuple[str, ...] = ()

    @classmethod
    def of(cls, runs: Sequence[Run], colours: tuple[str, ...] = ()) -> Joint:
        """Join runs whose names are apart already (see `told_apart`)."""
        joined = LayerTable.concatenate(run.table for run in runs).frame.drop_duplicates(KEYS)
        entries = [entry for run in runs if run.verb == "analyze" for entry in entries_of(run.summary, "models")]
        headline = next((run.summary["headline"] for run in runs if run.summary.get("headline")), "")
        first = runs[0] if runs else None
        return cls(
            table=LayerTable(joined.reset_index(drop=True)),
            record=first.record if first else {},
            summary={"headline": headline, "models": entries},
            samples=first.samples if first else [],
            config=first.config if first else "",
            folder=first.folder if first else Path(),
            runs=tuple(runs),
            colours=colours,
        )

    def of_verb(self, *verbs: str) -> Joint:
        """The runs of some verbs alone, in the colours of the whole."""
        return Joint.of([run for run in self.runs if run.verb in verbs], tuple(self.tuned))

    @cached_property
    def blocks(self) -> int:
        return next((depth for run in self.runs if (depth := depth_of_run(run))), 1)

    @cached_property
    def tuned(self) -> list[str]:
        ordered = sorted(self.runs, key=lambda run: COLOURED.index(run.verb) if run.verb in VERBS else 0)
        return list(dict.fromkeys(name for run in ordered for name in run.table.models if name != BASE))

    @cached_property
    def correlations(self) -> Correlations | None:
        """Of the curves that can be compared, worked out once; None where nothing was measured by block."""
        compared = comparable(self)
        return correlate(compared) if (compared.frame.layer >= 0).any() else None

    def hue(self, model: str) -> int:
        names = list(self.colours) or self.tuned
        return names.index(model) + 1 if model in names else 0


def entries_of(values: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """A list of mappings in a file, whatever else stands there left out."""
    found = values.get(key)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def read_joint(folders: Sequence[Path | str]) -> Joint:
    """Read run folders for one page; a folder given twice counts once.

    Raises:
        MidblockError: no folder, one that is no run, or models of different depth.
    """
    runs = [read_member(folder) for folder in distinct(folders)]
    _check_depths(runs)
    return Joint.of(told_apart(runs))


def distinct(folders: Sequence[Path | str]) -> list[Path]:
    """The folders in their order, each once.

    Raises:
        MidblockError: there is none.
    """
    if not folders:
        raise MidblockError("no run folder is given", hint="midblock report RUN [RUN…]")
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        found.setdefault(folder.resolve(), folder)
    return list(found.values())


def read_member(folder: Path) -> Run:
    """Read one run; an unfinished one may lack its table.

    Raises:
        MidblockError: the folder is none of a run that has a page, or a finished run without a table.
    """
    record: dict[str, Any] = read_json(folder / "run.json", {})
    tabled = (folder / "layers.parquet").exists()
    if not folder.is_dir() or not (record or tabled):
        raise MidblockError(f"{folder} is no run folder", hint=HINT)
    verb = record.get("verb") or "analyze"
    if verb not in VERBS:
        raise MidblockError(f"{folder} holds a run of `midblock {verb}`, which has no page", hint=HINT)
    if verb == "tune":
        return TuneRun.read(folder)
    if record and record.get("status") != "done" and not tabled:
        return Run(LayerTable.from_rows([]), record, read_json(folder / "summary.json", {}), [], "", folder)
    return Run.read(folder)


def depth_of_run(run: Run) -> int | None:
    """L, None where the run does not tell it."""
    if (run.table.frame.layer >= 0).any():
        return run.table.blocks
    return run.blocks if isinstance(run, TuneRun) and run.plan else None


def _check_depths(runs: Sequence[Run]) -> None:
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
        clashing = both[_differ(both)].model.unique()
        apart.append(_renamed(run, {str(name): f"{name} ({label})" for name in clashing}))
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
    if run.summary.get("tuned") in names:
        summary["tuned"] = names[str(run.summary["tuned"])]
    return replace(run, table=LayerTable(frame.astype({"model": "string"})), summary=summary)


def comparable(run: Joint) -> LayerTable:
    """The rows of curves to correlate: no merge, whose alphas were chosen, no swap of several blocks at once."""
    swapped = [part for part in run.runs if part.verb == "swap" and part.summary.get("mode") == "each"]
    kept = [part for part in run.runs if part.verb not in ("merge", "swap")]
    return Joint.of([*kept, *swapped]).table


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
