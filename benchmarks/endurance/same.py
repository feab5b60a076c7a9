"""What a run left, normalised, so that a killed and resumed one can be held against one that nobody stopped.

Weights, tables and every loss count to the bit. What says when, how fast, by which command and after how many attempts
does not.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

WHEN = {
    "started", "phases", "command", "notes", "seconds", "tokens_per_second", "peak_memory_mb", "computed", "served",
}  # fmt: skip
AGES = 10**18  # nanoseconds: no other number in a record is that large
# Names under which something unfinished lies, in a run's folder or beside it.
SCRATCH = re.compile(r"(^|/)(\..*\.(tmp|partial|lock)|[^/]*\.lock|lock|partial|checkpoints)(/|$)")
DRAWN = {".png", ".pdf", ".html"}


@dataclass(frozen=True)
class Against:
    """How a place differs from what an unkilled run leaves.

    Attributes:
        lost: files that are not there, and lines that a log lacks.
        other: files that say something else.
        left: names that should not be there.
    """

    lost: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def seen(place: Path) -> dict[str, str]:
    """Every file and empty folder below, and what it comes down to."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_file():
            found[name] = _content(path)
        elif not any(path.iterdir()):
            found[f"{name}/"] = ""
    return found


def against(whole: Mapping[str, str], now: Mapping[str, str]) -> Against:
    """Compare two places."""
    return Against(
        lost=tuple(name for name in whole if name not in now),
        other=tuple(
            f"{name}{_where(whole[name], now[name])}" for name in whole if now.get(name, whole[name]) != whole[name]
        ),
        left=tuple(name for name in now if name not in whole or SCRATCH.search(name)),
    )


def _where(before: str, after: str) -> str:
    """The first place at which two texts part."""
    first, second = before.splitlines(), after.splitlines()
    if len(first) < 2 and len(second) < 2:
        return ""
    lines = f"{len(first)} lines, {len(second)} now; " if len(first) != len(second) else ""
    parted = ((a, b) for a, b in zip_longest(first, second, fillvalue="") if a != b)
    before, after = next(parted)
    return f" ({lines}{before.strip()[:60]} → {after.strip()[:60]})"


def _content(path: Path) -> str:
    if path.suffix == ".json":
        return json.dumps(_lasting(_read(path.read_text(encoding="utf-8"))), indent=0, sort_keys=True)
    if path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        return "\n".join(json.dumps(_lasting(_read(line)), sort_keys=True) for line in lines)
    if path.suffix in DRAWN:
        return "drawn" if path.stat().st_size else "empty"
    if path.suffix == ".md":
        return re.sub(r"midblock \S+ .*|\d[\d,.]* (tokens/s|s\b).*", "…", path.read_text(encoding="utf-8"))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return f"broken: {text[:40]}"


def _lasting(value: Any) -> Any:
    if isinstance(value, int) and value > AGES:
        return "an age"
    if isinstance(value, dict):
        return {key: _lasting(each) for key, each in value.items() if key not in WHEN}
    return [_lasting(each) for each in value] if isinstance(value, list) else value
