"""`midblock swap`: parse, call `midblock.swap`, draw the page, print every cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from midblock.base.quoting import printable
from midblock.checkpoints import LoadSettings, load_pair
from midblock.cli.fitting import print_whole
from midblock.cli.life import Flat, carry_out, read_summary, tell
from midblock.interventions import SwapSettings
from midblock.interventions import swap as run_swap
from midblock.runs.reading import DEFAULT_DATA
from midblock.runs.where import Where

QUANTITIES = {"accuracy": "accuracy", "nll": "NLL", "perplexity": "perplexity", "exact_match": "exact match"}


def swap(
    base: str,
    tuned: str,
    *,
    data: str = DEFAULT_DATA,
    settings: Annotated[SwapSettings | None, Flat] = None,
    loading: Annotated[LoadSettings | None, Flat] = None,
    where: Annotated[Where | None, Flat] = None,
    json: bool = False,
) -> None:
    """Put blocks of each model into the other, segment by segment, and write a run folder with a report.

    Args:
        base: model before tuning: `org/name[@rev]`, a folder, a `.gguf` file or `builtin:smollm2-135m-instruct`.
        tuned: a model tuned from it: the same, or a PEFT adapter folder.
        data: examples with completions: `builtin:gsm_symbolic`, `gsm8k`, a hub set, a `.jsonl`, `.json` or `.parquet`.
        json: print the summary as JSON on standard output, for programs.
    """
    pair = load_pair(base, tuned, **asdict(loading or LoadSettings()))
    act = partial(run_swap, pair, data, **asdict(settings or SwapSettings()))
    filled, _ = carry_out("swap", [pair.tuned[0].name], where, act)
    tell(filled, as_json=json, show=partial(_show, filled.path))


def _show(folder: Path, console: Console) -> None:
    """One table for each host: references above, a line a cell and head."""
    summary = read_summary(folder)
    for host in dict.fromkeys(cell["host"] for cell in summary["cells"]):
        print_whole(_table(summary, host), console)


def _table(summary: Mapping[str, Any], host: str) -> Table:
    cells = [cell for cell in summary["cells"] if cell["host"] == host]
    shown = [name for name in QUANTITIES if name in cells[0]]
    host, donor = printable(host), printable(cells[0]["donor"])
    title = Text(f"Blocks of {donor} put into {host} (change against {host} with the same head)")
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for column in ("blocks", "head", *(QUANTITIES[name] for name in shown)):
        out.add_column(column, justify="right", no_wrap=column not in ("blocks", "head"))
    for reference in summary["references"]:
        levels = [f"{reference[name]['value']:.3f}" for name in shown]
        out.add_row(Text(printable(f"all of {reference['body']}")), _head(reference), *levels)
    for cell in cells:
        out.add_row(printable(cell["blocks"]), _head(cell), *(_level(cell[name]) for name in shown))
    return out


def _head(record: Mapping[str, Any]) -> str:
    return printable(record["head"]).removesuffix("_head")


def _level(found: Mapping[str, float]) -> str:
    change = f" ({found['change']:+.3f})" if "change" in found else ""
    return f"{found['value']:.3f}{change}"
