"""`log.jsonl`: one JSON object a logged step, appended as training goes, cut back to the checkpoint on resuming."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midblock.base import MidblockError, replace_atomically
from midblock.base.files import write_failure

NUMBERS = ("loss", "nll", "tokens", "seconds")  # what is read of a line again
NORMS = ("gradient_by_block", "gradient_by_part")
LAYER = re.compile(r"-?[0-9]{1,6}(\.\w+)?")


@dataclass(frozen=True)
class LogFile:
    """The log of a run."""

    path: Path

    def append(self, line: Mapping[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise write_failure(self.path, error) from error

    def read(self) -> tuple[dict[str, Any], ...]:
        """The lines that are whole; a kill may leave half of one at the end."""
        lines: list[dict[str, Any]] = []
        if self.path.is_file():
            for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                line = _line(text)
                if line is None or (lines and line["step"] <= lines[-1]["step"]):
                    break
                lines.append(line)
        return tuple(lines)

    def check(self, step: int, each: int) -> None:
        """Refuse a log that lacks a line before a checkpoint: what the run was like until there would be missing.

        Args:
            step: of the checkpoint.
            each: steps between lines; the first one has a line too.

        Raises:
            MidblockError: naming both steps.
        """
        lines = {line["step"] for line in self.read()}
        wanted = (wanted for wanted in (*range(1, min(step, 1) + 1), *range(each, step + 1, each)))
        missing = next((wanted for wanted in wanted if wanted not in lines), None)
        if missing is not None:
            what = f"{self.path} is broken: the line of step {missing} cannot be read, the checkpoint is of step {step}"
            raise MidblockError(what, hint="mend it, or --overwrite begins again")

    def cut(self, step: int) -> tuple[dict[str, Any], ...]:
        """Drop what lies beyond an optimiser step; return what is left."""
        kept = tuple(line for line in self.read() if line["step"] <= step)
        with replace_atomically(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        return kept


def _line(text: str) -> dict[str, Any] | None:
    """A line as `append` wrote it; None for what only looks like one."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or type(line.get("step")) is not int or line["step"] < 1:
        return None
    norms = [line.get(name, {}) for name in NORMS]
    if not all(isinstance(each, dict) and all(map(_number, each.values())) for each in norms):
        return None
    if not all(LAYER.fullmatch(key) for each in norms for key in each):
        return None
    return line if all(_number(line.get(name)) for name in NUMBERS) else None


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < float("inf")
