"""What the folder of an evaluation holds: no table by layer, but scores, comparisons and outputs. Any may be broken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midblock.base import LayerTable, MidblockError
from midblock.base.plain_file import check_plain_file, read_at_most
from midblock.report.read.reading import Run, beside_the_table
from midblock.runs.finished import BASE
from midblock.runs.lenient import parsed

SHOWN = 20_000_000  # bytes of the outputs that are looked at
SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class EvaluateRun(Run):
    """An evaluation, finished or not.

    Attributes:
        outputs: lines of `samples.jsonl`, as far as they are whole.
    """

    outputs: tuple[Mapping[str, Any], ...] = ()


def read_evaluation(folder: Path | str) -> EvaluateRun:
    """Read the folder of an evaluation; only the folder itself must be there."""
    folder = Path(folder)
    beside = beside_the_table(folder)
    models = beside["summary"].get("models")
    names = tuple(str(name) for name in models) if isinstance(models, list) else ()
    lines = (parsed(line) for line in _beginning(folder / SAMPLES).splitlines())
    outputs = tuple(line for line in lines if isinstance(line, dict))
    others = tuple(name for name in names if name != BASE)
    return EvaluateRun(LayerTable.from_rows([]), **beside, order=others, outputs=outputs)


def _beginning(file: Path) -> str:
    """The first bytes of a file as text, "" where it cannot be read."""
    try:
        check_plain_file(file)
        with file.open("rb") as stream:
            return read_at_most(stream, SHOWN).decode("utf-8", errors="replace")
    except (MidblockError, OSError):
        return ""
