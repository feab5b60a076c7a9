"""`midblock erase`: parse, call `midblock.erase`, draw the page, print the behaviour's rates by cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from midblock.base.quoting import printable
from midblock.carriers import EraseSettings
from midblock.carriers import erase as run_erasing
from midblock.carriers.erase.samples import TEST
from midblock.checkpoints import LoadSettings
from midblock.cli.fitting import print_whole
from midblock.cli.life import Flat, carry_out, read_summary, tell
from midblock.data.derived import DEFAULT_PROMPTS
from midblock.runs.where import Where


def erase(
    carrier: str,
    *,
    base: str,
    sft: str | None = None,
    data: str = DEFAULT_PROMPTS,
    settings: Annotated[EraseSettings | None, Flat] = None,
    loading: Annotated[LoadSettings | None, Flat] = None,
    where: Annotated[Where | None, Flat] = None,
    json: bool = False,
) -> None:
    """Train a soft prompt that switches off what tuning taught, without touching a weight, and see how far it goes.

    Args:
        carrier: the model whose behaviour is to go: a carrier's folder, or a plainly tuned model.
        base: the model it was tuned from.
        sft: a plainly tuned model to hold beside a carrier in the grid; by default the one it was carved from.
        data: prompts: any dataset, or one that names the behaviour, such as `style:prompts.jsonl`.
        json: print the summary as JSON on standard output, for programs.
    """
    options = {**asdict(settings or EraseSettings()), **asdict(loading or LoadSettings())}
    act = partial(run_erasing, carrier, base=base, sft=sft, data=data, **options)
    filled, _ = carry_out("erase", [Path(carrier).name or "run"], where, act)

    def told(summary: Mapping[str, Any]) -> list[str]:
        claim = [summary["claim"]] if summary["claim"] else []
        return [*claim, *summary["said"], f"Soft prompt: {filled.path / 'prompt'}"]

    tell(filled, as_json=json, show=partial(_show, filled.path), told=told)


def _show(folder: Path, console: Console) -> None:
    """One line a cell: the behaviour's rate on held-out prompts without and with the soft prompt, and with nulls."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for title in ("cell", "without", "with", "change", "random prompt", "start", "works?"):
        table.add_column(title, justify="left" if title in ("cell", "works?") else "right")
    for cell in read_summary(folder)["cells"]:
        effect, nulls = cell["judged"][TEST], cell["nulls"]
        table.add_row(
            printable(cell["title"]),
            f"{effect['before']['value']:.2f}",
            _interval(effect["after"], ".2f"),
            _interval(effect["change"], "+.2f"),
            f"{nulls['random']['after']['value']:.2f}",
            f"{nulls['start']['after']['value']:.2f}",
            printable(cell["verdict"]),
        )
    print_whole(table, console)
    console.print("Rate of the behaviour on test prompts, 95 % intervals over prompts.", style="dim")
    console.print()


def _interval(record: Mapping[str, float], form: str) -> str:
    text = format(record["value"], form)
    return text if record["low"] is None else f"{text} ({record['low']:{form}} to {record['high']:{form}})"
