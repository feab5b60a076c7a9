"""Local datasets: `.jsonl`, `.json` and `.parquet` files."""

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from midblock.base import MidblockError, nearest
from midblock.data.records import Record, Records


def read_file(path: Path) -> Records:
    """Open a local file of records.

    Raises:
        MidblockError: when it is missing (the nearest file is named), of another kind, empty or broken.
    """
    if not path.exists():
        raise _missing(path)
    if path.suffix.lower() not in READERS:
        raise MidblockError(f"{path} is no dataset file", hint=f"convert it to one of {', '.join(READERS)}")
    try:
        rows = READERS[path.suffix.lower()](path)
    except OSError as error:
        raise MidblockError(f"cannot read {path}: {error.strerror or error}") from error
    if rows.count == 0:
        raise MidblockError(f"{path} holds no rows")
    return rows


def _missing(path: Path) -> MidblockError:
    if not path.parent.is_dir():
        return MidblockError(f"no dataset at {path}: there is no folder {path.parent}")
    names = sorted(file.name for file in path.parent.iterdir() if file.suffix.lower() in READERS)
    close = nearest(path.name, names)
    hint = f"did you mean {path.parent / close}?" if close else None
    return MidblockError(f"no dataset at {path}", hint=hint)


def _read_json(path: Path) -> Records:
    """One record a line, or, as `.json` often is, one list of records."""
    content = _as_utf8(path.read_bytes(), path)
    if path.suffix.lower() == ".json" and content.lstrip().startswith(b"["):
        records = _parse(content, str(path))
    else:
        # Only \n ends a line: JSON texts may hold every other line separator unescaped.
        lines = enumerate(content.split(b"\n"), start=1)
        records = [_parse(line, f"{path}, line {number}") for number, line in lines if line.strip()]
    for number, record in enumerate(records, start=1):
        if not isinstance(record, Mapping):
            what = f"{path}, row {number} is a JSON {type(record).__name__}, not an object with named columns"
            raise MidblockError(what, hint='write {"prompt": …, "completion": …}')
    return Records.from_records(str(path), records)


def _as_utf8(content: bytes, path: Path) -> bytes:
    """The text without the byte order mark that some programs put in front; UTF-16 and UTF-32 are told by theirs."""
    encoding = json.detect_encoding(content[:4])
    if encoding == "utf-8-sig":
        return content.removeprefix(codecs.BOM_UTF8)
    if encoding == "utf-8":
        return content
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


def _read_parquet(path: Path) -> Records:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise MidblockError(f"{path} is broken or no Parquet file: {reason}", hint="download it again") from error

    def take(at: Sequence[int]) -> list[Record]:
        return table.take(list(at)).to_pylist() if at else []

    return Records(str(path), "", tuple(table.column_names), table.num_rows, take)


READERS: Mapping[str, Callable[[Path], Records]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
