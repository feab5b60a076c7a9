"""Records: a finite table of records from anywhere, read only where it is asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from midblock.base import MidblockError

Record = Mapping[str, Any]


def text_in(row: Record, column: str) -> str:
    """The text in a column.

    Raises:
        MidblockError: a model could not be given it.
    """
    value = row.get(column)
    if not isinstance(value, str):
        found = "null or missing" if value is None else f"{type(value).__name__}, not text"
        raise MidblockError(f"column {column!r} is {found}")
    if not value.strip():
        raise MidblockError(f"column {column!r} is empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise MidblockError(f"column {column!r} is no valid Unicode (half a surrogate pair)")
    return value


@dataclass(frozen=True)
class Records:
    """Records with named columns, before anything is known about their meaning.

    Attributes:
        name: what an error calls them (a file's path, a dataset reference).
        split: which part of the dataset they are; empty for a single file.
        columns: column names, in the source's order; not every record need have all of them.
        count: number of records.
        take: returns the records at the given positions (0…count-1), in that order; `columns` names those that are
            wanted, others may be left out.
        layout: the name in `LAYOUTS` where the source is known to have it; None to recognise it by its columns.
        notes: what a reader must know about where they come from.
    """

    name: str
    split: str
    columns: tuple[str, ...]
    count: int
    take: Callable[..., list[Record]]
    layout: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_records(
        cls, name: str, records: Sequence[Record], *, split: str = "", layout: str | None = None
    ) -> "Records":
        """Wrap records that are in memory already; the columns are those that any of them has."""
        columns = tuple(dict.fromkeys(column for record in records for column in record))

        def take(at: Sequence[int], columns: object = None) -> list[Record]:
            return [records[index] for index in at]

        return cls(name, split, columns, len(records), take, layout)
