"""`midblock steer`: parse, call `midblock.steer`, draw the page, print the effect and the first texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from midblock.base import MidblockError
from midblock.base.quoting import printable, printable_lines
from midblock.checkpoints import LoadSettings
from midblock.cli.fitting import print_whole
from midblock.cli.life import Flat, carry_out, read_summary, tell
from midblock.interventions.steer.settings import SteerSettings, alpha_label
from midblock.interventions.steer.steer import steer as run_steering
from midblock.runs.lenient import parsed, read_text
from midblock.runs.reading import DEFAULT_DATA
from midblock.runs.where import Where

SHOWN_TEXTS, SHOWN_LETTERS = 2, 400


def steer(
    base: str,
    *,
    source: Annotated[str, Parameter(name="--from")],
    data: str = DEFAULT_DATA,
    settings: Annotated[SteerSettings | None, Flat] = None,
    loading: Annotated[LoadSettings | None, Flat] = None,
    where: Annotated[Where | None, Flat] = None,
    json: bool = False,
) -> None:
    """Push a base towards a tuned model by adding directions to its residual stream, and see how far it gets.

    Args:
        base: model to steer: `org/name[@rev]`, a folder, a `.gguf` file or `builtin:smollm2-135m-instruct`.
        source: where to: a tuned model, or a run folder of `midblock analyze`, or of `midblock steer`, whose
            directions are used again.
        data: prompts: `builtin:gsm_symbolic`, `gsm8k`, a hub set, a `.jsonl`, `.json` or `.parquet` file.
        json: print the summary as JSON on standard output, for programs.
    """
    options = {**asdict(settings or SteerSettings()), **asdict(loading or LoadSettings())}
    act = partial(run_steering, base, source, data, **options)
    filled, _ = carry_out("steer", [Path(source).name or "run"], where, act)
    tell(filled, as_json=json, show=partial(_show, filled.path))


def _show(folder: Path, console: Console) -> None:
    """The first texts, and the effect of every strength."""
    for text in _read_texts(folder / "texts.json")[:SHOWN_TEXTS]:
        _print_texts(console, text)
    print_whole(_effects(read_summary(folder)), console)
    console.print("NLL of the tuned model's held-out answers, nats per token; random: mean over draws.", style="dim")
    console.print()


def _read_texts(file: Path) -> list[dict[str, Any]]:
    texts = parsed(read_text(file))
    if not isinstance(texts, list):
        raise MidblockError(f"{file} is missing or broken", hint="--overwrite makes the run anew")
    return texts


def _print_texts(console: Console, text: Mapping[str, Any]) -> None:
    answers = {"base": text["base"], **{f"α {label}": said for label, said in text["steered"].items()}}
    for title, said in {"prompt": text["prompt"], **answers, "tuned": text["tuned"]}.items():
        console.print(f"[{printable(title)}]", style="bold")
        console.print(printable_lines(said if len(said) <= SHOWN_LETTERS else said[:SHOWN_LETTERS] + " …"))
    console.print()


def _effects(summary: Mapping[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for title in ("", "NLL", "change", "random", "gap closed"):
        table.add_column(title, justify="right", no_wrap=bool(title))
    table.add_row("base", _number(summary["base"]["value"]), "", "", "")
    for record in summary["alphas"]:
        closed = record["gap_closed"]
        table.add_row(
            f"α {alpha_label(record['alpha'])}",
            _number(record["steered"]["value"]),
            _change(record["change"]),
            f"{record['random_change']['value']:+.4f}",
            "" if closed is None else f"{closed:.0%}",
        )
    table.add_row(printable(summary["tuned"]), _number(summary["tuned_nll"]["value"]), "", "", "")
    return table


def _number(value: float) -> str:
    return f"{value:.4f}"


def _change(record: Mapping[str, Any]) -> str:
    text = f"{record['value']:+.4f}"
    return text if record["low"] is None else f"{text} ({record['low']:+.4f} to {record['high']:+.4f})"
