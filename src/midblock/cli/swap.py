"""`midblock swap`: parse, call `midblock.swap`, draw the page, print every cell."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from midblock.base import watched
from midblock.checkpoints import LoadSettings, load_pair
from midblock.cli.output import OutputSettings, print_run, read_summary
from midblock.interventions import SwapSettings
from midblock.interventions import swap as run_swap
from midblock.interventions.reading import DEFAULT_DATA

Flat = Parameter(name="*")
QUANTITIES = {"accuracy": "accuracy", "nll": "NLL", "perplexity": "perplexity", "exact_match": "exact match"}


def swap(
    base: str,
    tuned: str,
    *,
    data: str = DEFAULT_DATA,
    settings: Annotated[SwapSettings | None, Flat] = None,
    loading: Annotated[LoadSettings | None, Flat] = None,
    output: Annotated[OutputSettings | None, Flat] = None,
) -> None:
    """Put blocks of each model into the other, segment by segment, and write a run folder with a report.

    Args:
        base: model before tuning: `org/name[@rev]`, a folder, a `.gguf` file or `builtin:smollm2-135m-instruct`.
        tuned: a model tuned from it: the same, or a PEFT adapter folder.
        data: examples with completions: `builtin:gsm_symbolic`, `gsm8k`, a hub set, a `.jsonl` or a `.parquet` file.
    """
    settings, loading, output = settings or SwapSettings(), loading or LoadSettings(), output or OutputSettings()
    pair = load_pair(base, tuned, **asdict(loading))
    folder = output.folder("swap", [pair.tuned[0].name])
    with watched() as progress:
        run_swap(
            pair,
            data,
            output_dir=folder,
            resume=output.resume,
            overwrite=output.overwrite,
            progress=progress,
            command=" ".join(["midblock", *sys.argv[1:]]),
            **asdict(settings),
        )
    print_run(folder, Console(), as_json=output.json, tables=_tables(folder))


def _tables(folder: Path) -> list[Table]:
    """One table for each host: references above, a line a cell and head."""
    summary = read_summary(folder)
    hosts = dict.fromkeys(cell["host"] for cell in summary["cells"])
    return [_table(summary, host) for host in hosts]


def _table(summary: Mapping[str, Any], host: str) -> Table:
    cells = [cell for cell in summary["cells"] if cell["host"] == host]
    shown = [name for name in QUANTITIES if name in cells[0]]
    title = Text(f"Blocks of {cells[0]['donor']} put into {host} (change against {host} with the same head)")
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for column in ("blocks", "head", *(QUANTITIES[name] for name in shown)):
        out.add_column(column, justify="right", no_wrap=True)
    for reference in summary["references"]:
        levels = [f"{reference[name]['value']:.3f}" for name in shown]
        out.add_row(Text(f"all of {reference['body']}"), _head(reference), *levels)
    for cell in cells:
        out.add_row(cell["blocks"], _head(cell), *(_level(cell[name]) for name in shown))
    return out


def _head(record: Mapping[str, Any]) -> str:
    return str(record["head"]).removesuffix("_head")


def _level(found: Mapping[str, float]) -> str:
    change = f" ({found['change']:+.3f})" if "change" in found else ""
    return f"{found['value']:.3f}{change}"
