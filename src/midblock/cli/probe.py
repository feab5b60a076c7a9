"""`midblock probe`: parse, call `midblock.probe`, draw the page, print every depth."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from midblock.base import LayerTable
from midblock.base.quoting import printable
from midblock.checkpoints import LoadSettings, load_models
from midblock.cli.fitting import print_whole
from midblock.cli.life import Flat, carry_out, tell
from midblock.interventions import ProbeSettings
from midblock.interventions import probe as run_probe
from midblock.runs.reading import DEFAULT_DATA
from midblock.runs.where import Where

SHOWN = (("accuracy", "exit_accuracy"), ("NLL", "exit_nll"), ("exact match", "exit_exact_match"))


def probe(
    base: str,
    tuned: tuple[str, ...] = (),
    *,
    data: str = DEFAULT_DATA,
    settings: Annotated[ProbeSettings | None, Flat] = None,
    loading: Annotated[LoadSettings | None, Flat] = None,
    where: Annotated[Where | None, Flat] = None,
    json: bool = False,
) -> None:
    """Read models off behind every block, through their own final norm and head, and write a run folder with a report.

    Args:
        base: a model, or the base of those that follow: `org/name[@rev]`, a folder, a `.gguf` file or
            `builtin:smollm2-135m-instruct`.
        tuned: models tuned from it: the same, PEFT adapter folders, or `BASE+CARRIER`.
        data: examples with completions: `builtin:gsm_symbolic`, `gsm8k`, a hub set, a `.jsonl`, `.json` or `.parquet`.
        json: print the summary as JSON on standard output, for programs.
    """
    pair = load_models(base, *tuned, **asdict(loading or LoadSettings()))
    act = partial(run_probe, pair, data, **asdict(settings or ProbeSettings()))
    filled, table = carry_out("probe", [variant.name for variant in pair.tuned or (pair.base,)], where, act)
    tell(filled, as_json=json, show=partial(_show, table))


def _show(table: LayerTable, console: Console) -> None:
    print_whole(_by_depth(table), console)


def _by_depth(table: LayerTable) -> Table:
    """One line a depth; columns for each model."""
    out = Table(title="Read off behind each block", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    out.add_column("layer", justify="right")
    curves = []
    for title, metric in SHOWN:
        for model in table.models:
            curve = table.curve(metric, model).set_index("layer")
            if len(curve):
                curves.append(curve)
                out.add_column(f"{title}\n{printable(model)}", justify="right")
    for layer in range(-1, table.blocks):
        cells = [f"{curve.loc[layer].value:.3f}" if layer in curve.index else "" for curve in curves]
        out.add_row("embedding" if layer == -1 else str(layer), *cells)
    return out
