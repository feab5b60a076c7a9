"""What every verb that fills a run folder does at the command line: carry it out while watched, then tell of it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from cyclopts import Parameter
from rich.console import Console

from midblock.base import MidblockError, Silent, watched
from midblock.base.json_file import read_object
from midblock.base.quoting import printable
from midblock.report import write_report
from midblock.runs.folder import RunFolder
from midblock.runs.lenient import read_json
from midblock.runs.processes import main_process
from midblock.runs.record import RECORD, read_record
from midblock.runs.where import Where

R = TypeVar("R")
Flat = Parameter(name="*")


@dataclass(frozen=True)
class Filled:
    """A run folder after the command that was to fill it.

    Attributes:
        path: the folder.
        read_back: it was whole before and is only told again, so anybody may have changed its files. What the command
            wrote itself and cannot show is a bug of ours.
    """

    path: Path
    read_back: bool


def whole(folder: Path) -> bool:
    """Whether a finished run lies there: a command that goes on with what is there reads it back."""
    return RunFolder(folder, read_json(folder / RECORD, {})).done


def carry_out(verb: str, names: Sequence[str], where: Where | None, act: Callable[..., R]) -> tuple[Filled, R]:
    """Call a verb so that it fills a folder, tells how far it got, and records the command line.

    Args:
        names: of what it is about; without an `output_dir` the folder is `runs/VERB-NAMES`.
        act: the verb with all but the fields of `Where`.

    Returns:
        The folder, and what the verb gave.
    """
    where = where or Where()
    folder = where.folder or Path("runs") / "-".join([verb, *map(_safe, names)])
    read_back = where.resume and whole(folder)
    with watched() as progress:
        asked = replace(
            where,
            output_dir=folder,
            progress=progress if main_process() else Silent(),
            command=shlex.join(["midblock", *sys.argv[1:]]),
        )
        found = act(**{field.name: getattr(asked, field.name) for field in fields(asked)})
    return Filled(folder, read_back), found


def tell(
    filled: Filled,
    *,
    as_json: bool,
    show: Callable[[Console], None] | None = None,
    told: Callable[[Mapping[str, Any]], Sequence[str]] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Draw the page of a finished run and print what was found, or all of it as JSON; the main process does it.

    Args:
        show: prints tables, above the headline.
        told: lines below the headline, from the summary.
        more: what else the JSON says.

    Raises:
        MidblockError: the summary is missing or broken, or what was read back is not what the command leaves.
    """
    if not main_process():
        return
    folder = filled.path
    summary = read_summary(folder)
    page = write_report(folder)
    notes = read_record(folder).get("notes")
    notes = notes if isinstance(notes, list) else []
    if as_json:
        print(
            json.dumps(
                {**summary, "notes": notes, "folder": str(folder), **(more or {}), "report": str(page)}, indent=2
            )
        )
        return
    console = Console(file=sys.stdout, markup=False, highlight=False)
    with _as_written(folder) if filled.read_back else nullcontext():
        if show is not None:
            show(console)
        found = told(summary) if told is not None else ()
    console.print(printable(summary["headline"]), style="bold", soft_wrap=True)
    lines = [*found, *(f"Note: {note}" for note in notes), f"Report: {page}"]
    for line in lines:
        console.print(printable(line), soft_wrap=True)


@contextmanager
def _as_written(folder: Path) -> Iterator[None]:
    """What is read back is shown as the verb wrote it; whoever changed it since may have put anything there.

    Raises:
        MidblockError: something is missing there, or is something else.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"the files in {folder} are not what this command leaves ({type(error).__name__}: {error})"
        raise MidblockError(what, hint="--overwrite makes the run anew") from error


def read_summary(folder: Path) -> dict[str, Any]:
    """Read what a finished run says about itself.

    Raises:
        MidblockError: it is missing or broken.
    """
    file = folder / "summary.json"
    try:
        summary = read_object(file)
    except MidblockError:
        summary = {}
    if not isinstance(summary.get("headline"), str):
        raise MidblockError(f"{file} is missing or broken", hint="--overwrite makes the run anew")
    return summary


def _safe(name: str) -> str:
    """A name as part of a folder's."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
