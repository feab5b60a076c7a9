"""Records in JSON files: one a line, read twice so that only the lines asked for are kept, or one list of them.

The first reading finds where each record begins and that every line can be read; a record itself is kept no longer than
that. A list, and text that is not UTF-8, has no such places: it is read whole, up to a limit.
"""

from __future__ import annotations

import codecs
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from midblock.base import MidblockError
from midblock.base.files import size_text
from midblock.base.plain_file import read_at_most
from midblock.data.records import Record, Records

LONGEST = 2**28  # bytes of a line
WHOLE = 2**30  # bytes of what is read whole


def read_json(path: Path) -> Records:
    """Open a file of one record a line, or, as `.json` often is, one list of records.

    Raises:
        MidblockError: another encoding than UTF-8, -16 or -32, a record that is no JSON object, a line or list that is
            larger than the limits.
    """
    with path.open("rb") as file:
        start = file.read(4)
        encoding = json.detect_encoding(start)
        if encoding not in ("utf-8", "utf-8-sig"):
            return _records(_parsed(_as_utf8(_whole(file, path), encoding, path), path), path)
        skipped = len(codecs.BOM_UTF8) if encoding == "utf-8-sig" else 0
        if path.suffix.lower() == ".json" and _first_letter(file, skipped) == b"[":
            return _records(_parsed(_whole(file, path)[skipped:], path), path)
        return _indexed(file, path, skipped)


def _first_letter(file: BinaryIO, skipped: int) -> bytes:
    file.seek(skipped)
    while (letter := file.read(1)).isspace():
        pass
    return letter


def _indexed(file: BinaryIO, path: Path, skipped: int) -> Records:
    """One record a line: where each begins, and its line's number; the columns are those that any of them has."""
    places, numbers = array("q"), array("q")
    seen: dict[str, None] = {}
    file.seek(skipped)
    place = skipped
    for number, line in enumerate(_lines(file, path), start=1):
        if line.strip():
            record = _checked(_parse(line, f"{path}, line {number}"), path, len(places) + 1)
            seen.update(dict.fromkeys(record))
            places.append(place)
            numbers.append(number)
        place += len(line)

    def take(at: Sequence[int], columns: object = None) -> list[Record]:
        found: dict[int, Record] = {}
        with path.open("rb") as again:
            for index in sorted(set(at)):
                again.seek(places[index])
                line = _parse(again.readline(LONGEST), f"{path}, line {numbers[index]}")
                found[index] = _checked(line, path, index + 1)
        return [found[index] for index in at]

    return Records(str(path), "", tuple(seen), len(places), take)


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Only \\n ends a line: JSON texts may hold every other line separator unescaped."""
    for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), start=1):
        if len(line) > LONGEST:
            raise MidblockError(f"{path}, line {number} is longer than {size_text(LONGEST)}")
        yield line


def _whole(file: BinaryIO, path: Path) -> bytes:
    size = path.stat().st_size
    if size > WHOLE:
        hint = "write it as .jsonl in UTF-8, one object a line"
        raise MidblockError(f"{path} has {size_text(size)} and would have to be read whole", hint=hint)
    file.seek(0)
    return read_at_most(file, WHOLE)


def _parsed(content: bytes, path: Path) -> list[Any]:
    if path.suffix.lower() == ".json" and content.lstrip().startswith(b"["):
        found: list[Any] = _parse(content, str(path))
        return found
    lines = enumerate(content.split(b"\n"), start=1)
    return [_parse(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def _records(values: list[Any], path: Path) -> Records:
    return Records.from_records(str(path), [_checked(value, path, number) for number, value in enumerate(values, 1)])


def _checked(value: Any, path: Path, number: int) -> Record:
    if not isinstance(value, Mapping):
        what = f"{path}, row {number} is a JSON {type(value).__name__}, not an object with named columns"
        raise MidblockError(what, hint='write {"prompt": …, "completion": …}')
    return value


def _as_utf8(content: bytes, encoding: str, path: Path) -> bytes:
    """UTF-16 and UTF-32 are told by their byte order mark, or by where their zeros are."""
    try:
        return content.decode(encoding).encode("utf-8")
    except UnicodeError as error:
        raise MidblockError(f"{path} is no valid {encoding.upper()}: {error}", hint="save it as UTF-8") from error


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise MidblockError(f"{where} is nested too deeply", hint="one whole object per line") from error
    except ValueError as error:
        raise MidblockError(f"{where} is no valid JSON: {error}", hint="one whole object per line") from error
