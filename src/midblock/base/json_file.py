"""JSON that others wrote, read within limits: how large, how deep, how long a number, and every key said once.

What passes can be copied, compared and written again: Python's own reader takes depths that nothing after it can walk,
and numbers that no format can hold. Infinity may stand there, as some models' configs have it; NaN may not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from midblock.base.errors import MidblockError
from midblock.base.plain_file import read_bytes

LARGEST = 100_000_000  # bytes; the index of the largest models has a fifth of it
DEEPEST = 64  # objects and lists within one another
LARGEST_NUMBER = 10**40  # of whole ones; tokenizers say 10^30 where they mean no limit
SHOWN = 60  # letters of a stranger's key in a message


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        MidblockError: it cannot be read, is no UTF-8 or no JSON, holds something else than an object, or is beyond a
            limit; the message names the file.
    """
    return parse_object(read_bytes(file, LARGEST), str(file))


def parse_object(content: bytes | str, where: str) -> dict[str, Any]:
    """Read JSON text that holds one object.

    Args:
        where: what to call it in messages.

    Raises:
        MidblockError: as `read_object`.
    """
    found = parse_json(content, where)
    if not isinstance(found, dict):
        raise MidblockError(f"{where} holds no JSON object", hint="fetch it again")
    return found


def parse_json(content: bytes | str, where: str) -> Any:
    """Read JSON text of any kind; arguments and errors as of `parse_object`."""
    found = _parse(content, where)
    _check_values(found, where)
    return found


def _parse(content: bytes | str, where: str) -> Any:
    """The value, whose depth and numbers may still be anything that Python reads."""
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        return json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, where))
    except RecursionError as error:
        raise _too_deep(where) from error
    except ValueError as error:
        digits = "integer string conversion" in str(error)
        reason = "a number is too long" if digits else str(error)
        raise MidblockError(f"{where} is not readable JSON: {reason}", hint="fetch it again") from error


def _once(pairs: Iterable[tuple[str, Any]], where: str) -> dict[str, Any]:
    """An object whose keys are said once; twice the same is no harm."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise MidblockError(f"{where} says {shown(key)} twice, and not the same")
        found[key] = value
    return found


def _check_values(found: Any, where: str) -> None:
    """Walk without recursion: what is too deep for Python's is looked for."""
    level: list[tuple[str, Any]] = [("it", found)]
    for _ in range(DEEPEST + 1):
        for key, value in level:
            if isinstance(value, int | float) and not _fits(value):
                raise MidblockError(f"{where}: {shown(key)} is a number that cannot be used", hint="fetch it again")
        level = [(key, part) for name, value in level for key, part in _parts(name, value)]
        if not level:
            return
    raise _too_deep(where)


def _parts(key: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        return value.items()
    return [(key, part) for part in value] if isinstance(value, list) else ()


def _fits(number: float) -> bool:
    return not math.isnan(number) if isinstance(number, float) else abs(number) < LARGEST_NUMBER


def _too_deep(where: str) -> MidblockError:
    return MidblockError(f"{where} is nested more than {DEEPEST} deep", hint="fetch it again")


def shown(value: Any) -> str:
    """A stranger's word or value as it may stand in a message: as Python writes it, on one line, and cut."""
    if isinstance(value, str):
        return repr(value if len(value) <= SHOWN else f"{value[:SHOWN]}…")
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
