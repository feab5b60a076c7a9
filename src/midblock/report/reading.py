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
from midblock.metrics import METRICS, Metric

T = TypeVar("T")
BASE = "base"


@dataclass(frozen=True)
class Run:
    """A finished run as the report sees it.

    Attributes:
        table: every number.
        record: `run.json`, or {}.
        summary: `summary.json`, or {}.
        samples: a few prompts of the data, or [].
        config: the text of `config.yaml`, or "".
    """

    table: LayerTable
    record: Mapping[str, Any]
    summary: Mapping[str, Any]
    samples: Sequence[Any]
    config: str

    @classmethod
    def read(cls, folder: Path | str) -> Run:
        """Read a run folder.

        Raises:
            MidblockError: when it holds no layer table, or an empty one.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise MidblockError(f"no run folder at {folder}", hint="give a folder written by `midblock analyze`")
        table = LayerTable.read(folder)
        if not len(table):
            raise MidblockError(f"the layer table in {folder} is empty", hint="run `midblock analyze` again")
        return cls(
            table=table,
            record=_json(folder / "run.json", {}),
            summary=_json(folder / "summary.json", {}),
            samples=_json(folder / "samples.json", []),
            config=_text(folder / "config.yaml"),
        )

    @cached_property
    def blocks(self) -> int:
        """L; 1 when only the embedding was measured."""
        return self.table.blocks if (self.table.frame.layer >= 0).any() else 1

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
    return METRICS.get(metric) or Metric(metric.replace("_", " ").capitalize(), "", "pooled", True, "", "")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(path: Path, otherwise: T) -> T:
    """A report is worth having when a file beside the table is missing or broken."""
    try:
        value = json.loads(_text(path))
    except ValueError:
        return otherwise
    return value if isinstance(value, type(otherwise)) else otherwise
