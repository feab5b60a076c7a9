"""The checkpoint to go on from: the last one that is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

PREFIX = "checkpoint-"
# The Trainer writes this one last.
STATE = "trainer_state.json"


def last_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """Find the newest whole checkpoint and its step; remove newer ones that a kill left half written."""
    found = sorted(
        (int(path.name.removeprefix(PREFIX)), path)
        for path in folder.glob(f"{PREFIX}*")
        if path.name.removeprefix(PREFIX).isdigit()
    )
    for step, path in reversed(found):
        try:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            state = {}
        if state.get("global_step") == step:
            return path, step
        shutil.rmtree(path, ignore_errors=True)
    return None
