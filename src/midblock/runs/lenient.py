"""Reading what a finished run left beside its table: what is missing or something else than expected is left out.

A table is worth showing when a file beside it is broken, so nothing here raises.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def read_text(path: Path) -> str:
    """The file's text, "" where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def read_json(path: Path, otherwise: T) -> T:
    """What the file holds; `otherwise` where it is missing, broken or of another type."""
    try:
        value = json.loads(read_text(path))
    except ValueError:
        return otherwise
    return value if isinstance(value, type(otherwise)) else otherwise


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
