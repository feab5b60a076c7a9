"""`midblock recommend`: parse, call `midblock.recommend`, draw the page, print the answer and its reasons."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from midblock.base.quoting import printable
from midblock.checkpoints import LoadSettings
from midblock.cli.fitting import print_whole
from midblock.cli.life import Flat, carry_out, read_summary, tell
from midblock.runs.where import Where
from midblock.studies.recommend.recommend import recommend as run_recommend
from midblock.studies.recommend.settings import RecommendSettings

COLUMNS = (("gain", "gain kept"), ("forgotten", "forgotten"))


def recommend(
    about: tuple[str, ...] = (),
    *,
    data: str | None = None,
    general: str | None = None,
    settings: Annotated[RecommendSettings | None, Flat] = None,
    loading: Annotated[LoadSettings | None, Flat] = None,
    where: Annotated[Where | None, Flat] = None,
    json: bool = False,
) -> None:
    """Say which blocks to tune, with reasons: from runs, from a pilot, or what of a tuned model to keep.

    `RUN…` reads runs of analyze, swap, flow, probe and steer. `BASE --data DATA` makes a pilot: a few steps of uniform
    LoRA. `BASE TUNED --general DATA` finds α by depth that gives back what was forgotten.

    Args:
        about: run folders, or a base model, or a base and a model tuned from it.
        data: examples of the task: `builtin:gsm_symbolic`, `gsm8k`, a hub set, a `.jsonl`, `.json` or `.parquet` file.
        general: examples of what must not be forgotten.
        json: print the summary as JSON on standard output, for programs.
    """
    options = {**asdict(settings or RecommendSettings()), **asdict(loading or LoadSettings())}
    act = partial(run_recommend, *about, data=data, general=general, announce=None if json else _announce, **options)
    filled, _ = carry_out("recommend", [Path(each).name for each in about], where, act)
    tell(filled, as_json=json, show=partial(_show, filled.path), told=_told)


def _announce(line: str) -> None:
    Console(file=sys.stderr, markup=False, highlight=False).print(printable(line), soft_wrap=True)


def _told(summary: Mapping[str, Any]) -> Sequence[str]:
    reasons = [f"- {reason}" for reason in summary["reasons"]]
    alphas = summary.get("alphas")
    use = [f"midblock merge BASE TUNED --alphas {','.join(f'{alpha:g}' for alpha in alphas)}"] if alphas else []
    return [*reasons, *use]


def _show(folder: Path, console: Console) -> None:
    """Of a repair, what was tested."""
    tested = read_summary(folder).get("tested")
    if not tested:
        return
    out = Table(title="On the test sets", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for column in ("alphas", *(title for _, title in COLUMNS)):
        out.add_column(column, justify="left" if column == "alphas" else "right", no_wrap=column != "alphas")
    for row in tested:
        out.add_row(
            row["name"],
            *(f"{row[key]:+.3f} [{row[f'{key}_low']:+.3f}, {row[f'{key}_high']:+.3f}]" for key, _ in COLUMNS),
        )
    print_whole(out, console)
