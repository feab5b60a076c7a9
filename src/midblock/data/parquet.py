"""Records in Parquet files, read a few rows at a time, and of each row only the columns that are asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from midblock.base import MidblockError
from midblock.data.records import Record, Records

ROWS = 64  # decoded at a time: a text of a megabyte in each of them is no harm
BUFFER = 2**20  # bytes read from the file at a time


def read_parquet(path: Path) -> Records:
    """Open a Parquet file; its rows are read when they are asked for, row group by row group.

    Raises:
        MidblockError: it is broken or no Parquet file.
    """
    import pyarrow.parquet

    with _told(path):
        file = pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER)
        names = tuple(file.schema_arrow.names)
        groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]

    def take(at: Sequence[int], columns: Collection[str] | None = None) -> list[Record]:
        wanted = None if columns is None else [name for name in names if name in columns]
        with _told(path):
            found = dict(_rows(file, sorted(set(at)), groups, wanted))
            return [found[index] for index in at]

    return Records(str(path), "", names, sum(groups), take)


def _rows(
    file: Any, at: Sequence[int], groups: Sequence[int], columns: list[str] | None
) -> Iterator[tuple[int, Record]]:
    """Rows by their places, which ascend; groups without one of them are not opened."""
    starts = [0, *accumulate(groups)]
    by_group: dict[int, list[int]] = {}
    for index in at:
        by_group.setdefault(bisect_right(starts, index) - 1, []).append(index)
    for group, indices in by_group.items():
        first, left = starts[group], iter([*indices, -1])
        index = next(left)
        for batch in file.iter_batches(ROWS, row_groups=[group], columns=columns, use_threads=False):
            inside = []
            while first <= index < first + len(batch):
                inside.append(index)
                index = next(left)
            rows = batch.take([each - first for each in inside]).to_pylist() if inside else []
            yield from zip(inside, rows, strict=True)
            first += len(batch)
            if index < 0:
                break


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Raise MidblockError for whatever a broken file makes Arrow say, or for rows that it promised and lacks."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, KeyError, ValueError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MidblockError(f"{path} is broken or no Parquet file: {reason}", hint="download it again") from error
