"""A base whose weights are packed: an adapter cannot be merged into them, its full-precision original is needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from midblock.base import MidblockError
from midblock.checkpoints.config import read_config


def check_plain(folder: Path, who: str) -> None:
    """Do nothing if the base of an adapter or a carrier is stored in plain numbers.

    PEFT would merge into some packed weights by rounding the sum anew, which is another change than the adapter's.

    Args:
        folder: the base's.
        who: is put on it, for messages.

    Raises:
        MidblockError: it is quantised; the original is named where its config or its card names it.
    """
    config = read_config(folder)
    packed = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    if not packed:
        return
    method = str(packed.get("quant_method", "")).upper() if isinstance(packed, dict) else ""
    kind = f" ({method})" if method else ""
    what = f"the base {folder} of {who} is stored quantised{kind}: nothing can be added to it"
    named = _original(folder, config)
    hint = f"give its full-precision original with --base{f', {named} by its own account' if named else ''}"
    raise MidblockError(what, hint=hint)


def _original(folder: Path, config: dict[str, Any]) -> str | None:
    """The model that was quantised, as the card's header or the config has it."""
    card = folder / "README.md"
    if card.exists():
        header = card.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
        if found := re.search(r"^base_model:\s*(?:-\s*)?[\"']?([^\s\"'\[\]]+)", header, re.MULTILINE):
            return found[1]
    name = config.get("_name_or_path")
    return str(name) if name and Path(str(name)).name != folder.name else None
