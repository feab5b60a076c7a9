"""How amounts are written for people: counts, bytes, durations."""

from __future__ import annotations

import math
from typing import Any

from midblock.runs.lenient import as_number

SPACE = "\u00a0"
COUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
SIZES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def count(value: Any) -> str:
    """807 K, 134.5 M, 7.6 B."""
    return _scaled(value, COUNTS, "")


def size(value: Any) -> str:
    """Bytes as 513 MiB, 4.2 GiB."""
    return _scaled(value, SIZES, "B")


def share(part: Any, whole: Any) -> str:
    """A share in percent, two digits; "" where it cannot be said."""
    part, whole = as_number(part), as_number(whole)
    if not (math.isfinite(part) and whole > 0):
        return ""
    percent = 100 * part / whole
    return f"{percent:.3g}{SPACE}%" if percent < 99.95 or percent == 100 else f"99.9{SPACE}%"


def duration(seconds: Any) -> str:
    """12.3 s, 4 min 32 s, 3 h 05 min."""
    value = as_number(seconds)
    if not math.isfinite(value):
        return "–"
    if value < 59.95:  # else three digits would say 60 s
        return f"{value:.3g}{SPACE}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest:02d}{SPACE}s"
    return f"{minutes // 60}{SPACE}h {minutes % 60:02d}{SPACE}min"


def _scaled(value: Any, scales: tuple[tuple[float, str], ...], plain: str) -> str:
    amount = as_number(value)
    if not math.isfinite(amount):
        return "–"
    scale, name = next(((scale, name) for scale, name in scales if amount >= scale), (1.0, plain))
    digits = f"{amount / scale:.4g}" if amount >= 100 * scale else f"{amount / scale:.3g}"
    return f"{digits}{SPACE}{name}".strip(SPACE)
