"""What came of a cell, held against what is expected; the expected outcomes as a file."""

import json
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from filelock import FileLock

from midblock.base import MidblockError

from .pair import Pair

FILE = Path(__file__).with_name("expected.json")
WRITE = os.environ.get("MIDBLOCK_WRITE_FAMILIES") == "1"
WORKS = "works"


def check(pair: Pair, cell: str, work: Callable[[Pair], None]) -> None:
    """Fail unless a cell works, or is refused, as expected; a wrong number and a crash fail by themselves."""
    found = outcome(pair, work)
    if WRITE:
        _write(pair.family, cell, found)
    else:
        assert found == expected().get(pair.family, {}).get(cell)


def outcome(pair: Pair, work: Callable[[Pair], None]) -> str:
    """`works`, or the one line in which midblock refuses."""
    try:
        work(pair)
    except MidblockError as error:
        line = str(error).replace(str(pair.folder), "…")
    else:
        return WORKS
    assert "\n" not in line, "a refusal is one line"
    return line


def read() -> dict[str, dict[str, str]]:
    """Family → cell → `works` or why not."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


expected = cache(read)


def _write(family: str, cell: str, found: str) -> None:
    """Change one outcome; several processes may do so at once."""
    with FileLock(Path(tempfile.gettempdir()) / "midblock-families.lock"):
        table = read()
        table.setdefault(family, {})[cell] = found
        ordered = {name: table[name] for name in sorted(table)}
        FILE.write_text(json.dumps(ordered, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
