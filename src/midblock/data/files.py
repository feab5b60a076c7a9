"""Local datasets: `.jsonl`, `.json` and `.parquet` files."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from midblock.base import MidblockError, nearest
from midblock.base.plain_file import check_plain_file
from midblock.data.json_lines import read_json
from midblock.data.parquet import read_parquet
from midblock.data.records import Records

MOST_ROWS = 100_000_000  # to draw from; the order of all of them is drawn


def read_file(path: Path) -> Records:
    """Open a local file of records.

    Raises:
        MidblockError: when it is missing (the nearest file is named), of another kind, no plain file, empty or broken.
    """
    if not path.exists():
        raise _missing(path)
    if path.suffix.lower() not in READERS:
        raise MidblockError(f"{path} is no dataset file", hint=f"convert it to one of {', '.join(READERS)}")
    check_plain_file(path)
    try:
        rows = READERS[path.suffix.lower()](path)
    except OSError as error:
        raise MidblockError(f"cannot read {path}: {error.strerror or error}") from error
    if rows.count == 0:
        raise MidblockError(f"{path} holds no rows")
    if rows.count > MOST_ROWS:
        raise MidblockError(f"{path} holds {rows.count:,} rows; at most {MOST_ROWS:,} can be drawn from")
    return rows


def _missing(path: Path) -> MidblockError:
    try:
        names = os.listdir(path.parent)
    except (FileNotFoundError, NotADirectoryError):
        return MidblockError(f"no dataset at {path}: there is no folder {path.parent}")
    except OSError as error:
        return MidblockError(f"cannot look into {path.parent}: {error.strerror}")
    close = nearest(path.name, sorted(name for name in names if Path(name).suffix.lower() in READERS))
    hint = f"did you mean {path.parent / close}?" if close else None
    return MidblockError(f"no dataset at {path}", hint=hint)


READERS: Mapping[str, Callable[[Path], Records]] = {
    ".jsonl": read_json,
    ".json": read_json,
    ".parquet": read_parquet,
}
