"""Reading what a finished run left beside its table: what is missing or something else than expected is left out.

A table is worth showing when a file beside it is broken, so nothing here raises.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from midblock.base import MidblockError
from midblock.base.json_file import DEEPEST
from midblock.base.plain_file import read_bytes

LARGEST = 100_000_000  # bytes of a file beside the table
DIGITS = 18  # of a whole number that fits into 64 bits
T = TypeVar("T")


def read_text(path: Path, largest: int = LARGEST) -> str:
    """The file's text, "" where there is none or more than `largest` bytes of it."""
    try:
        return read_bytes(path, largest).decode("utf-8", errors="replace")
    except MidblockError:
        return ""


def read_json(path: Path, otherwise: T) -> T:
    """What the file holds; `otherwise` where it is missing, broken or of another type."""
    value = parsed(read_text(path))
    return value if isinstance(value, type(otherwise)) else otherwise


def parsed(text: str) -> Any:
    """JSON text; None where it is none, or nested too deep to be walked. Whole numbers beyond 64 bits are NaN."""
    try:
        value = json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError):
        return None
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [part for each in level for part in _parts(each)]
        if not level:
            return value
    return None


def _whole(digits: str) -> float:
    return int(digits) if len(digits) <= DIGITS else math.nan


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def left_out(folder: Path, kinds: Mapping[str, type]) -> list[str]:
    """What a reader must know of files that are there and cannot be used.

    Args:
        kinds: their names, and what each should hold.
    """
    there = [name for name in kinds if os.path.lexists(folder / name)]
    lost = [name for name in there if not isinstance(parsed(read_text(folder / name)), kinds[name])]
    return [f"{name} is broken: what it tells is left out." for name in lost]


def mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of a file, {} where it is missing or something else."""
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def entries_of(values: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """A list of mappings in a file, whatever else stands there left out."""
    found = values.get(key)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def as_number(value: Any) -> float:
    """A finite number as a float, anything else as NaN."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else math.nan
