"""What a run folder holds, read once: the table is required, everything beside it optional."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from midblock.base import LayerTable, MidblockError
from midblock.interventions import INTERVENTIONS
from midblock.metrics import METRICS, Correlations, Metric, correlate

T = TypeVar("T")
BASE = "base"
# What `tune` and `flow` record by depth; no metric to ask `analyze` for.
TRAINING: Mapping[str, Metric] = {
    "gradient_norm": Metric(
        "Gradient norm, mean over steps", "L2", "weights", False, "",
        "Norm of the loss's gradient by what is trained there, before clipping, averaged over the logged steps.",
        (0, None),
    ),
    "gradient_norm_first": Metric(
        "Gradient norm, first step", "L2", "weights", False, "",
        "Norm of the loss's gradient at the first logged step, where the weights are still the base model's.",
        (0, None),
    ),
    "gradient_agreement": Metric(
        "Agreement of gradients", "cosine", "weights", False, "steps",
        "Mean cosine between the gradients of different steps: 1 where every batch pulls the same way, 0 where they "
        "have nothing in common.", (-1, 1),
    ),
    "gradient_snr": Metric(
        "Signal to noise of the gradient", "ratio", "weights", False, "steps",
        "Squared norm of the mean gradient over the mean squared deviation from it; noise alone gives 0 on average.",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished run as the report sees it.

    Attributes:
        table: every number.
        record: `run.json`, or {}.
        summary: `summary.json`, or {}.
        samples: a few prompts of the data, or [].
        config: the text of `config.yaml`, or "".
        folder: where it was read from.
    """

    table: LayerTable
    record: Mapping[str, Any]
    summary: Mapping[str, Any]
    samples: Sequence[Any]
    config: str
    folder: Path = Path()

    @classmethod
    def read(cls, folder: Path | str) -> Run:
        """Read a run folder.

        Raises:
            MidblockError: when it holds no layer table, or an empty one.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise MidblockError(
                f"no run folder at {folder}", hint="give a folder written by `midblock analyze` or `midblock tune`"
            )
        table = LayerTable.read(folder)
        if not len(table):
            raise MidblockError(f"the layer table in {folder} is empty", hint="run `midblock analyze` again")
        return cls(
            table=table,
            record=read_json(folder / "run.json", {}),
            summary=read_json(folder / "summary.json", {}),
            samples=read_json(folder / "samples.json", []),
            config=read_text(folder / "config.yaml"),
            folder=folder,
        )

    @property
    def verb(self) -> str:
        """The command that wrote it; a table alone is taken for an analysis."""
        return str(self.record.get("verb") or "analyze")

    @property
    def done(self) -> bool:
        return self.record.get("status") == "done"

    @cached_property
    def blocks(self) -> int:
        """L; 1 when only the embedding was measured."""
        return self.table.blocks if (self.table.frame.layer >= 0).any() else 1

    @cached_property
    def correlations(self) -> Correlations | None:
        """Between the table's depth curves, worked out once; None where nothing was measured by block."""
        return correlate(self.table) if (self.table.frame.layer >= 0).any() else None

    @cached_property
    def present(self) -> Mapping[str, tuple[str, ...]]:
        """Metric (suffixes too) → the modules that have at least one finite value, in the table's order."""
        finite = self.table.frame[np.isfinite(self.table.frame.value)]
        found: dict[str, dict[str, None]] = {}
        for metric, module in finite[["metric", "module"]].drop_duplicates().itertuples(index=False):
            found.setdefault(metric, {})[module] = None
        return {metric: tuple(modules) for metric, modules in found.items()}

    @cached_property
    def tuned(self) -> list[str]:
        """Names of the tuned models in the table, in its order: the order of their colours everywhere."""
        return [name for name in self.table.models if name != BASE]

    @cached_property
    def base(self) -> str:
        """The base model, as it was asked for."""
        models = self.record.get("models")
        entries = [m for m in models if isinstance(m, dict)] if isinstance(models, list) else []
        references = [entry.get("reference") for entry in entries if entry.get("role") == BASE]
        return str(references[0] or BASE) if references else BASE

    def hue(self, model: str) -> int:
        """Number of a model's colour: 0 the base, 1… the tuned models in their order."""
        return self.tuned.index(model) + 1 if model in self.tuned else 0

    def has(self, metric: str, module: str = "residual") -> bool:
        return module in self.present.get(metric, ())

    def summary_of(self, model: str) -> Mapping[str, Any]:
        """The summary's entry about one tuned model, {} where there is none."""
        entries = self.summary.get("models")
        named = (
            [e for e in entries if isinstance(e, dict) and e.get("name") == model] if isinstance(entries, list) else []
        )
        return named[0] if named else {}


def describe(metric: str) -> Metric:
    """The catalogue's entry; a metric it does not know is shown under its own name."""
    return (
        METRICS.get(metric)
        or TRAINING.get(metric)
        or INTERVENTIONS.get(metric)
        or Metric(metric.replace("_", " ").capitalize(), "", "pooled", True, "", "")
    )


def mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of a file, {} where it is missing or something else."""
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def read_text(path: Path) -> str:
    """The file's text, "" where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def read_json(path: Path, otherwise: T) -> T:
    """A report is worth having when a file beside the table is missing or broken."""
    try:
        value = json.loads(read_text(path))
    except ValueError:
        return otherwise
    return value if isinstance(value, type(otherwise)) else otherwise
