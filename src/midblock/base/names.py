"""What tables call models: a name of one line for each, no two alike, and none that means something else there.

Names come from folders and the hub; keys inside are never made from them, only what is shown is. The rule: the last
part of the path or hub name; where two share it, the whole reference; where they share that too, a number in brackets.
`base` and the like are the tables' own: a model of that name gets its part in brackets, `base (tuned)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path

from midblock.base.quoting import printable

BASE = "base"
ROUNDED = "base, rounded"  # the base in the other precision, for the precision floor
RESERVED = frozenset({BASE, ROUNDED})


def own_name(name: str, part: str = "tuned") -> str:
    """What a table calls a model that is not the base.

    Args:
        name: its folder's, or any other.
        part: what it is, told where the name alone would say something else.
    """
    shown = printable(name)
    return f"{shown} ({part})" if shown.strip() in RESERVED | {""} else shown


def name_of(folder: Path, part: str = "tuned") -> str:
    """What a table calls the model that a run leaves in a folder."""
    return own_name(folder.resolve().name, part)


def name_note(folder: Path, part: str = "tuned") -> list[str]:
    """What a reader must know of a folder whose own name tables do not take."""
    name = name_of(folder, part)
    return [] if name == folder.resolve().name else [f"The model in {folder} is called {name} in tables and figures."]


def own_names(short: Sequence[str], whole: Sequence[str]) -> list[str]:
    """What a table calls several models beside the base.

    Args:
        short: the name of each, as it would stand alone.
        whole: its whole reference, for where two are called alike.
    """
    shown = [own_name(name) for name in short]
    wanted = [
        own_name(reference) if shown.count(name) > 1 else name for name, reference in zip(shown, whole, strict=True)
    ]
    return numbered_apart(wanted)


def numbered_apart(names: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """The names, those that came before with a number in brackets.

    Args:
        taken: names that none may have.
    """
    found: list[str] = []
    for place, name in enumerate(names):
        numbered = (name if number == 1 else f"{name} ({number})" for number in count(1))
        others = {*found, *taken, *names[place + 1 :]} - ({name} - {*found, *taken})
        found.append(next(each for each in numbered if each not in others))
    return found
