"""`log.jsonl`: one JSON object a logged step, appended as training goes, cut back to the checkpoint on resuming."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midblock.base import replace_atomically
from midblock.base.files import write_failure


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
        lines = []
        if self.path.is_file():
            for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    line = json.loads(text)
                except ValueError:
                    break
                if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                    break
                lines.append(line)
        return tuple(lines)

    def cut(self, step: int) -> tuple[dict[str, Any], ...]:
        """Drop what lies beyond an optimiser step; return what is left."""
        kept = tuple(line for line in self.read() if line["step"] <= step)
        with replace_atomically(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        return kept
