"""ModelReference: the one string by which a model is named everywhere, read once and checked before anything loads."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from midblock.base import MidblockError, nearest, unknown, user_path
from midblock.checkpoints.builtin import BUILTIN

Kind = Literal["hub", "folder", "adapter", "carrier", "gguf", "builtin", "sum"]

FORMS = (
    "org/name[@revision], a folder, a PEFT adapter folder, a carrier folder, MODEL+CARRIER, MODEL+PROMPT, a .gguf "
    "file, or builtin:" + ", builtin:".join(BUILTIN)
)
PLUS = "+"

# what a folder is, by the file that says so; a model's own config comes before them
_KINDS: tuple[tuple[str, Kind], ...] = (("adapter_config.json", "adapter"), ("carrier_config.json", "carrier"))
_ADDED = ("carrier", "adapter")  # what may stand behind a plus; of adapters `open_checkpoint` takes a soft prompt
_MADE = ("adapter", "carrier", "model", "prompt")  # of `tune`, `carve`, `erase`, in their run folders

_HUB = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(@(?P<revision>[\w.-][\w./-]*))?", re.ASCII)


@dataclass(frozen=True)
class ModelReference:
    """Where a model is to be had.

    Attributes:
        text: what the user wrote.
        kind: "hub", "folder", "adapter" (a PEFT folder), "carrier", "gguf", "builtin", or "sum" (a model and what is
            added to it).
        location: the hub's `org/name`, a path, or a name of `BUILTIN`; of a sum its first term, the model.
        revision: branch, tag or commit on the hub; None for its default branch and for every other kind.
        added: of a sum the other terms.
    """

    text: str
    kind: Kind
    location: str
    revision: str | None = None
    added: tuple[ModelReference, ...] = ()

    @classmethod
    def parse(cls, text: str) -> ModelReference:
        """Read a reference; what exists on disk wins over the hub's name of the same spelling, and over a sum.

        Raises:
            MidblockError: when it fits no form, names an unknown builtin, or a path where nothing is.
        """
        text = text.strip()
        if text.startswith("builtin:") and PLUS not in text:
            return cls._builtin(text)
        path = user_path(text)
        if text and path.exists():
            return cls._local(text, path)
        if len(terms := _terms(text)) > 1:
            return cls._sum(text, terms)
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
            path = made_inside(path)
            return cls(text, _kind_of(path), str(path))
        if path.suffix.lower() == ".gguf":
            return cls(text, "gguf", str(path))
        raise MidblockError(f"{text} is a file", hint="give the folder that holds it, or a .gguf file")

    @classmethod
    def _sum(cls, text: str, terms: list[str]) -> ModelReference:
        model, *added = (cls.parse(term) for term in terms)
        for term in added:
            if term.kind not in _ADDED:
                hint = "what stands behind a + is a folder that midblock carve or erase wrote"
                raise MidblockError(f"{term} is no carrier: nothing can be added to {model}", hint=hint)
        return cls(text, "sum", model.text, added=tuple(added))

    @property
    def path(self) -> Path:
        """The place on disk of a "folder", "adapter", "carrier" or "gguf" reference."""
        return Path(self.location)

    @property
    def model(self) -> ModelReference:
        """Of a sum the model that is added to; else itself."""
        return ModelReference.parse(self.location) if self.kind == "sum" else self

    @property
    def below(self) -> ModelReference:
        """Of a sum the same without its last term."""
        *rest, last = self.added
        if not rest:
            return self.model
        text = self.text[: self.text.rindex(last.text)].rstrip().removesuffix(PLUS).rstrip()
        return replace(self, text=text, added=tuple(rest))

    @property
    def places(self) -> tuple[Path, ...]:
        """What of it lies on disk where the user said."""
        if self.kind == "sum":
            return (*self.model.places, *(place for term in self.added for place in term.places))
        return () if self.kind in ("hub", "builtin") else (self.path,)

    @property
    def label(self) -> str:
        """A short name for tables and figures: the last part of the path or hub name, with its revision if set."""
        if self.kind == "sum":
            return PLUS.join(term.label for term in (self.model, *self.added))
        if self.kind in ("hub", "builtin"):
            name = self.location.rpartition("/")[2]
            return f"{name}@{self.revision}" if self.revision else name
        if self.kind == "gguf":
            return self.path.stem
        path = self.path.resolve()
        return path.parent.name if made_inside(path.parent) == path else path.name

    def __str__(self) -> str:
        return self.text


def made_inside(folder: Path) -> Path:
    """What a run folder holds: the adapter, carrier, model or soft prompt that it made; any other folder is its own."""
    if not os.path.exists(folder / "run.json") or os.path.exists(folder / "config.json"):
        return folder
    return next((folder / name for name in _MADE if (folder / name).is_dir()), folder)


def _kind_of(folder: Path) -> Kind:
    whole = os.path.exists(folder / "config.json")
    for file, kind in _KINDS:
        if os.path.exists(folder / file) and not (whole and kind == "carrier"):
            return kind
    return "folder"


def _terms(text: str) -> list[str]:
    """What a plus stands between; a plus in the name of something on disk is a part of that name.

    Returns:
        The text itself where it is no sum.
    """
    left, terms = text.split(PLUS), []
    while left:
        count = next((n for n in range(len(left), 1, -1) if user_path(PLUS.join(left[:n])).exists()), 1)
        terms.append(PLUS.join(left[:count]).strip())
        left = left[count:]
    return terms if all(terms) else [text]


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
