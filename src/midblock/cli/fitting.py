"""Tables in the room there is: no number, verdict or name is cut off."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

ROOM = 12  # letters that a column which may fold keeps at least: no number in it is longer
WIDEST = 10**6


def print_whole(table: Table, console: Console) -> None:
    """Print a table: as wide as it is where nobody watches; in a terminal folded, or else a paragraph for each row.

    Cells of columns with `no_wrap` stand on one line; the others fold.
    """
    for column in table.columns:
        column.overflow = "fold"
    if not console.is_terminal:
        before, console.width = console.width, max(console.width, _width(table, console))
        console.print(table)
        console.width = before
        return
    if _least(table, console) > console.width:
        for column in table.columns:
            column.header = str(column.header).replace(" ", "\n")
    if _least(table, console) <= console.width:
        console.print(table)
        return
    if table.title:
        console.print(table.title)
    for paragraph in _paragraphs(table):
        console.print(paragraph, overflow="fold")
    console.print()


def _width(table: Table, console: Console) -> int:
    return console.measure(table, options=console.options.update(max_width=WIDEST)).maximum


def _least(table: Table, console: Console) -> int:
    """Letters across that the table needs when every column that may fold does."""
    spare = (max(0, _across(column, console) - ROOM) for column in table.columns if not column.no_wrap)
    return _width(table, console) - sum(spare)


def _across(column: Column, console: Console) -> int:
    options = console.options.update(max_width=WIDEST)
    return max(Measurement.get(console, options, cell).maximum for cell in (column.header, *column.cells))


def _paragraphs(table: Table) -> Iterator[Text]:
    """Of each row the values, every one behind its title."""
    titles = [str(column.header).replace("\n", " ") for column in table.columns]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        told = zip(titles, map(str, row), strict=True)
        yield Text("; ".join(f"{title} {cell}".strip() for title, cell in told if cell))
