"""Finished: a run as its folder tells it, for whoever goes on from it. (`RunFolder` is a run being filled.)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from midblock.base import LayerTable
from midblock.runs.lenient import entries_of, read_json

BASE = "base"
UNTOLD = "analyze"  # the verb of a folder that holds a table and no record


@dataclass(frozen=True)
class Finished:
    """What a run found, read back.

    Attributes:
        table: every number.
        record: `run.json`, or {}.
        summary: `summary.json`, or {}.
        folder: where it was read from.
        depth: L, where it is known from elsewhere than the table.
        order: names of the tuned models in their order; () where it is the table's.
    """

    table: LayerTable
    record: Mapping[str, Any]
    summary: Mapping[str, Any]
    folder: Path = Path()
    depth: int | None = None
    order: tuple[str, ...] = ()

    @property
    def verb(self) -> str:
        """The command that wrote it; a table alone is taken for an analysis."""
        return verb_of(self.record)

    @property
    def done(self) -> bool:
        return self.record.get("status") == "done"

    @cached_property
    def measured(self) -> bool:
        """Whether the table holds a row of a block; the embedding alone does not tell the depth."""
        return bool((self.table.frame.layer >= 0).any())

    @cached_property
    def blocks(self) -> int:
        """L; 1 where nothing tells it."""
        return self.table.blocks if self.measured else self.depth or 1

    @cached_property
    def tuned(self) -> list[str]:
        """Names of the tuned models, in their order."""
        return list(self.order or (name for name in self.table.models if name != BASE))

    @cached_property
    def base(self) -> str:
        """The base model, as it was asked for."""
        entries = entries_of(self.record, "models")
        references = [entry.get("reference") for entry in entries if entry.get("role") == BASE]
        return str(references[0] or BASE) if references else BASE

    def summary_of(self, model: str) -> Mapping[str, Any]:
        """The summary's entry about one model, {} where there is none."""
        return next((entry for entry in entries_of(self.summary, "models") if entry.get("name") == model), {})


def read_finished(folder: Path | str) -> Finished:
    """Read a run folder back.

    Raises:
        MidblockError: it holds no layer table.
    """
    folder = Path(folder)
    table = LayerTable.read(folder)
    record: dict[str, Any] = read_json(folder / "run.json", {})
    return Finished(table, record, read_json(folder / "summary.json", {}), folder)


def verb_of(record: Mapping[str, Any]) -> str:
    """The verb that `run.json` names."""
    return str(record.get("verb") or UNTOLD)
