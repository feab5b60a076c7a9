"""Run folders into what a page shows: one run, or several that fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from midblock.base import LayerTable, MidblockError, user_path
from midblock.report.read.joint import Joint, check_depths, told_apart
from midblock.report.read.reading import Run, beside_the_table
from midblock.report.verbs import PAGES
from midblock.runs.finished import verb_of
from midblock.runs.lenient import read_json


def read_one(folder: Path | str) -> Run:
    """Read a run for a page of its own, a `Joint` of one for the verbs that share their sections.

    Raises:
        MidblockError: as `read_joint`, or the folder holds no layer table.
    """
    folder = Path(folder)
    record: dict[str, Any] = read_json(folder / "run.json", {})
    row = PAGES.get(verb_of(record))
    if row is None or row.page is None:
        return read_joint([folder])
    return (row.read or Run.read)(folder)


def read_joint(folders: Sequence[Path | str]) -> Joint:
    """Read run folders for one page; a folder given twice counts once.

    Raises:
        MidblockError: no folder, one that is no run, or models of different depth.
    """
    runs = [read_member(folder) for folder in distinct(folders)]
    check_depths(runs)
    return Joint.of(told_apart(runs))


def distinct(folders: Sequence[Path | str]) -> list[Path]:
    """The folders in their order, each once.

    Raises:
        MidblockError: there is none.
    """
    if not folders:
        raise MidblockError("no run folder is given", hint="midblock report RUN [RUN…]")
    found: dict[Path, Path] = {}
    for folder in map(user_path, folders):
        found.setdefault(folder.resolve(), folder)
    return list(found.values())


def read_member(folder: Path) -> Run:
    """Read one run; an unfinished one may lack its table.

    Raises:
        MidblockError: there is no folder, it is none of a run that has a page, or a finished run without a table.
    """
    record: dict[str, Any] = read_json(folder / "run.json", {})
    tabled = (folder / "layers.parquet").exists()
    if not folder.exists():
        raise MidblockError(f"no run folder at {folder}", hint=_known())
    if not folder.is_dir() or not (record or tabled):
        raise MidblockError(f"{folder} is no run folder", hint=_known())
    verb = verb_of(record)
    if verb not in PAGES:
        raise MidblockError(f"{folder} holds a run of `midblock {verb}`, which has no page", hint=_known())
    unfinished = bool(record) and record.get("status") != "done" and not tabled
    read = PAGES[verb].read or (_without_table if unfinished else Run.read)
    return replace(read(folder), traits=PAGES[verb].traits)


def _without_table(folder: Path) -> Run:
    return Run(LayerTable.from_rows([]), **beside_the_table(folder))


def _known() -> str:
    verbs = [f"`{verb}`" for verb in PAGES]
    return f"give folders written by midblock {', '.join(verbs[:-1])} or {verbs[-1]}"
