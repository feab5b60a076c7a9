"""ModelReference: the one string by which a model is named everywhere, read once and checked before anything loads."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from midblock.base import MidblockError, nearest, unknown, user_path
from midblock.checkpoints.builtin import BUILTIN

Kind = Literal["hub", "folder", "adapter", "gguf", "builtin"]

FORMS = "org/name[@revision], a folder, a PEFT adapter folder, a .gguf file, or builtin:" + ", builtin:".join(BUILTIN)

_HUB = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(@(?P<revision>[\w.-][\w./-]*))?", re.ASCII)


@dataclass(frozen=True)
class ModelReference:
    """Where a model is to be had.

    Attributes:
        text: what the user wrote.
        kind: "hub", "folder", "adapter" (a PEFT folder), "gguf" or "builtin".
        location: the hub's `org/name`, a path, or a name of `BUILTIN`.
        revision: branch, tag or commit on the hub; None for its default branch and for every other kind.
    """

    text: str
    kind: Kind
    location: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelReference:
        """Read a reference; what exists on disk wins over the hub's name of the same spelling.

        Raises:
            MidblockError: when it fits no form, names an unknown builtin, or a path where nothing is.
        """
        text = text.strip()
        if text.startswith("builtin:"):
            return cls._builtin(text)
        path = user_path(text)
        if text and path.exists():
            return cls._local(text, path)
        match = _HUB.fullmatch(text)
        if match and not text.startswith("~") and path.suffix.lower() != ".gguf":
            return cls(text, "hub", match["repo"], match["revision"])
        raise _nothing_there(text, path)

    @classmethod
    def _builtin(cls, text: str) -> ModelReference:
        name = text.removeprefix("builtin:")
        if name not in BUILTIN:
            raise unknown("builtin model", name, BUILTIN)
        return cls(text, "builtin", name)

    @classmethod
    def _local(cls, text: str, path: Path) -> ModelReference:
        if path.is_dir():
            path = _tuned_inside(path) or path
            return cls(text, "adapter" if os.path.exists(path / "adapter_config.json") else "folder", str(path))
        if path.suffix.lower() == ".gguf":
            return cls(text, "gguf", str(path))
        raise MidblockError(f"{text} is a file", hint="give the folder that holds it, or a .gguf file")

    @property
    def path(self) -> Path:
        """The place on disk of a "folder", "adapter" or "gguf" reference."""
        return Path(self.location)

    @property
    def label(self) -> str:
        """A short name for tables and figures: the last part of the path or hub name, with its revision if set."""
        if self.kind in ("hub", "builtin"):
            name = self.location.rpartition("/")[2]
            return f"{name}@{self.revision}" if self.revision else name
        if self.kind == "gguf":
            return self.path.stem
        path = self.path.resolve()
        return path.parent.name if _tuned_inside(path.parent) == path else path.name

    def __str__(self) -> str:
        return self.text


def _tuned_inside(folder: Path) -> Path | None:
    """What a run folder of `midblock tune` holds: its adapter or its model; None for any other folder."""
    if not os.path.exists(folder / "run.json") or os.path.exists(folder / "config.json"):
        return None
    return next((folder / name for name in ("adapter", "model") if (folder / name).is_dir()), None)


def nearest_path(path: Path) -> Path | None:
    """Return the existing neighbour of a missing path whose name is spelled most like it, or None."""
    try:
        names = os.listdir(path.parent)
    except OSError:  # none there, or none that may be looked into
        return None
    close = nearest(path.name, names)
    return path.parent / close if close else None


def _nothing_there(text: str, path: Path) -> MidblockError:
    if not text:
        return MidblockError("the model reference is empty", hint=f"give {FORMS}")
    if close := nearest_path(path):
        return MidblockError(f"no model at {text}", hint=f"did you mean {close}?")
    missing = next((parent for parent in reversed(path.parents) if not os.path.exists(parent)), path)
    where = f"{missing} does not exist; " if missing != path else ""
    return MidblockError(f"no model at {text}", hint=f"{where}give {FORMS}")
