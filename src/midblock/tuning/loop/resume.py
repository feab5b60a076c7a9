"""The checkpoint to go on from: the last one that is whole."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from midblock.base import MidblockError

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
        if isinstance(state, dict) and state.get("global_step") == step:
            return path, step
        shutil.rmtree(path, ignore_errors=True)
    return None


def check_whole(checkpoint: Path) -> None:
    """Look whether weights, optimiser, schedule and random state can be read; the Trainer passes over what is missing.

    Args:
        checkpoint: a folder that the Trainer wrote without FSDP.

    Raises:
        MidblockError: naming the file.
    """
    weights = sorted(checkpoint.glob("*.safetensors")) or [checkpoint / "*.safetensors"]
    random = sorted(checkpoint.glob("rng_state*.pth")) or [checkpoint / "rng_state.pth"]
    pickled = [checkpoint / "optimizer.pt", checkpoint / "scheduler.pt", *random]
    broken = [file for file in pickled if not zipfile.is_zipfile(file)] + [file for file in weights if _broken(file)]
    if broken:
        hint = f"remove {checkpoint}, and --resume goes on from the one before it"
        raise MidblockError(f"{broken[0]} is missing or broken", hint=hint)


def _broken(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt"):
            return False
    except (OSError, SafetensorError):
        return True
