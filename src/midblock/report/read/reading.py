"""Run: a finished run as the report sees it, and what its metrics are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from midblock.base import LayerTable, MidblockError
from midblock.interventions import INTERVENTIONS
from midblock.metrics import METRICS, Correlations, Metric, correlate
from midblock.metrics.metric import NO_SINKS
from midblock.runs.finished import Finished
from midblock.runs.lenient import left_out, read_json, read_text
from midblock.studies.recommend.catalogue import ADVICE
from midblock.tuning.training_metrics import TRAINING

MOST_MODELS = 40  # on a page
MOST_ROWS = 300_000
LONGEST_CONFIG = 200_000  # bytes that a page shows
# The rooms' tables of what their numbers mean.
CATALOGUES: tuple[Mapping[str, Metric], ...] = (METRICS, TRAINING, INTERVENTIONS, ADVICE)


@dataclass(frozen=True)
class Traits:
    """How the runs of a verb stand beside others on one page.

    Attributes:
        colour: models of a lower number get the first colours, and keep them when runs of a higher one join.
        describes: the entries of its summary tell where in depth each model changed.
        compared: whether a run's curves by depth may be correlated with others'; None where all may.
    """

    colour: int = 0
    describes: bool = False
    compared: Callable[[Finished], bool] | None = None


PLAIN = Traits()


@dataclass(frozen=True)
class Run(Finished):
    """A finished run (or several joined, see `Joint`) with what a page shows of it besides.

    Attributes:
        samples: a few prompts of the data, or [].
        config: the text of `config.yaml`, or "".
        traits: of its verb.
        colours: names of the tuned models in the order of their colours; () where it is their own order.
        compared: the rows whose curves by depth are correlated; None for all.
    """

    samples: Sequence[Any] = ()
    config: str = ""
    traits: Traits = PLAIN
    colours: tuple[str, ...] = ()
    compared: LayerTable | None = None

    @classmethod
    def read(cls, folder: Path | str) -> Run:
        """Read a run folder.

        Raises:
            MidblockError: when it holds no layer table, or an empty one.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise MidblockError(f"no run folder at {folder}", hint="give a folder that midblock has written")
        table = LayerTable.read(folder)
        if not len(table):
            raise MidblockError(f"the layer table in {folder} is empty", hint="run `midblock analyze` again")
        shown, notes = bounded(table)
        return Run(shown, **beside_the_table(folder, notes))

    @cached_property
    def correlations(self) -> Correlations | None:
        """Between depth curves, worked out once; None where nothing was measured by block."""
        table = self.table if self.compared is None else self.compared
        return correlate(table) if (table.frame.layer >= 0).any() else None

    @cached_property
    def present(self) -> Mapping[str, tuple[str, ...]]:
        """Metric (suffixes too) → the modules that have at least one finite value, in the table's order."""
        finite = self.table.frame[np.isfinite(self.table.frame.value)]
        found: dict[str, dict[str, None]] = {}
        for metric, module in finite[["metric", "module"]].drop_duplicates().itertuples(index=False):
            found.setdefault(metric, {})[module] = None
        return {metric: tuple(modules) for metric, modules in found.items()}

    def hue(self, model: str) -> int:
        """Number of a model's colour: 0 the base, 1… the tuned models in their order."""
        names = list(self.colours) or self.tuned
        return names.index(model) + 1 if model in names else 0

    def has(self, metric: str, module: str = "residual") -> bool:
        return module in self.present.get(metric, ())

    def told(self, metric: str) -> str:
        """The name under which a metric of states is told first: without sinks, where it was measured so."""
        return metric + NO_SINKS if self.has(metric + NO_SINKS) else metric


def bounded(table: LayerTable) -> tuple[LayerTable, list[str]]:
    """As much of a table as a page shows, and a note on the rest; a real run has a tenth of it."""
    frame, notes = table.frame, []
    if len(models := table.models) > MOST_MODELS:
        frame = frame[frame.model.isin(models[:MOST_MODELS])]
        notes.append(f"The table tells of {len(models):,} models; the first {MOST_MODELS} are shown.")
    if len(frame) > MOST_ROWS:
        notes.append(f"The table has {len(frame):,} rows; the first {MOST_ROWS:,} are shown.")
        frame = frame.iloc[:MOST_ROWS]
    return (LayerTable(frame.reset_index(drop=True)), notes) if notes else (table, notes)


def beside_the_table(folder: Path, notes: Sequence[str] = ()) -> dict[str, Any]:
    """What else a run folder holds, by the names of `Run`'s fields; nothing of it need be there.

    Args:
        notes: what a reader must know besides.
    """
    record: dict[str, Any] = read_json(folder / "run.json", {})
    told = record.get("notes")
    lost = left_out(folder, {"run.json": dict, "summary.json": dict, "samples.json": list})
    if lost or notes:
        record["notes"] = [*(told if isinstance(told, list) else ()), *notes, *lost]
    return {
        "record": record,
        "summary": read_json(folder / "summary.json", {}),
        "samples": read_json(folder / "samples.json", []),
        "config": read_text(folder / "config.yaml", LONGEST_CONFIG),
        "folder": folder,
    }


def describe(metric: str) -> Metric:
    """The catalogue's entry, of a metric without sinks too; one that none knows is shown under its own name."""
    metric = metric.removesuffix(NO_SINKS)
    known = (catalogue[metric] for catalogue in CATALOGUES if metric in catalogue)
    return next(known, Metric(metric.replace("_", " ").capitalize(), "", "pooled", True, "", ""))
