"""`midblock carve`: parse, show the plan, call `midblock.carve`, draw the page, print the table and the verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from midblock.base.files import size_text
from midblock.base.quoting import printable
from midblock.carriers import NecessitySettings
from midblock.carriers import carve as run_carving
from midblock.carriers.carve.verdicts import told_once
from midblock.checkpoints import LoadSettings, ModelReference
from midblock.cli.fitting import print_whole
from midblock.cli.life import Flat, carry_out, read_summary, tell
from midblock.cli.tune import print_plan
from midblock.data.derived import DEFAULT_PROMPTS
from midblock.runs.where import Where


def carve(
    base: str,
    tuned: str,
    *,
    data: str = DEFAULT_PROMPTS,
    settings: Annotated[NecessitySettings | None, Flat] = None,
    loading: Annotated[LoadSettings | None, Flat] = None,
    where: Annotated[Where | None, Flat] = None,
    json: bool = False,
) -> None:
    """Press what tuning taught into few channels, and see whether it is there: alone, and taken out.

    Args:
        base: model before tuning: `org/name[@rev]`, a folder, a `.gguf` file or `builtin:smollm2-135m-instruct`.
        tuned: a model tuned from it to show the behaviour.
        data: prompts: any dataset, or one that names the behaviour, such as `style:prompts.jsonl`.
        json: print the summary as JSON on standard output, for programs.
    """
    options = {**asdict(settings or NecessitySettings()), **asdict(loading or LoadSettings())}
    options.pop("tuned")
    act = partial(run_carving, base, tuned, data, announce=None if json else print_plan, **options)
    filled, carving = carry_out("carve", [ModelReference.parse(tuned).label], where, act)
    tell(filled, as_json=json, show=partial(_show, filled.path), told=_told, more={"carrier": str(carving.carrier)})


def _show(folder: Path, console: Console) -> None:
    """A line for each contender, a column for each measure."""
    summary = read_summary(folder)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("model")
    for measure in summary["measures"]:
        table.add_column(printable(measure["title"]), justify="right")
    rows = {(row["contender"], row["measure"]): row for row in summary["necessity"]}
    for contender in dict.fromkeys(name for name, _ in rows):
        cells = [_level(rows[contender, measure["name"]]) for measure in summary["measures"]]
        table.add_row(printable(contender), *cells)
    print_whole(table, console)


def _level(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return ""
    ends = "" if row["low"] is None else f" ({row['low']:.3f} to {row['high']:.3f})"
    return f"{row['value']:.3f}{ends}"


def _told(summary: Mapping[str, Any]) -> list[str]:
    sizes = summary["sizes"]
    said = f"{size_text(sizes['carrier_bytes'])} on disk, of {size_text(sizes['delta_bytes'])} for the whole change."
    return [*told_once(summary["verdicts"]), f"Carrier: {said}"]
