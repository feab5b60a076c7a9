"""`midblock evaluate`: parse, call `midblock.evaluate`, draw the page, print scores and comparisons."""

from __future__ import annotations

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
from midblock.evaluation import EvaluateSettings
from midblock.evaluation import evaluate as run_evaluation
from midblock.evaluation.evaluate.evaluate import open_models
from midblock.evaluation.evaluate.forgetting import KLS
from midblock.runs.where import Where

WORDS = ("task", "model", "metric", "second", "against", "verdict")  # columns that may fold
KL_TITLES = {"kl_general": "KL general", "kl_general_reverse": "reverse", "kl_tasks": "KL tasks",
             "kl_tasks_reverse": "reverse"}  # fmt: skip


def evaluate(
    base: str,
    tuned: tuple[str, ...] = (),
    *,
    reference: str | None = None,
    settings: Annotated[EvaluateSettings | None, Flat] = None,
    loading: Annotated[LoadSettings | None, Flat] = None,
    where: Annotated[Where | None, Flat] = None,
    json: bool = False,
) -> None:
    """Score models on tasks, compare them on the same items, and tell what tuning made them forget.

    Args:
        base: a model: `org/name[@rev]`, a folder, a `.gguf` file or `builtin:smollm2-135m-instruct`.
        tuned: others to compare with it: the same, PEFT adapter folders, or `BASE+CARRIER`.
        reference: the model whose predictions the others' are compared with; the first one when left out.
        json: print the summary as JSON on standard output, for programs.
    """
    asked = settings or EvaluateSettings()
    pair = open_models([base, *tuned], asdict(loading or LoadSettings()))
    act = partial(run_evaluation, pair, reference=reference, **asdict(asked))
    names = [variant.name for variant in pair.tuned] or [pair.base.name]
    filled, _ = carry_out("evaluate", names, where, act)
    tell(filled, as_json=json, show=partial(_show, filled.path), told=_told)


def _show(folder: Path, console: Console) -> None:
    summary = read_summary(folder)
    print_whole(_scores(summary["scores"]), console)
    if summary["comparisons"]:
        print_whole(_comparisons(summary["comparisons"]), console)
    if summary["forgetting"]:
        print_whole(_forgetting(summary["forgetting"]), console)


def _told(summary: Mapping[str, Any]) -> list[str]:
    """At which level a difference would have been found."""
    count = len(summary["comparisons"])
    if not count:
        return []
    level = f"at 5 %{f' over {count} comparisons (Holm)' if count > 1 else ''}"
    return [f"Detectable: the smallest difference that four of five such runs would find, {level}."]


def _scores(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("task", "model", "metric", "value (95 % interval)", "items", "no answer", "cut")
    for row in rows:
        counts = ("" if row[name] is None else str(row[name]) for name in ("no_answer", "cut"))
        table.add_row(
            *(printable(row[name]) for name in ("task", "model", "metric")),
            _estimate(row["value"], row),
            str(row["n"]),
            *counts,
        )
    return table


def _comparisons(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("task", "second", "against", "difference (95 % interval)", "p (Holm)", "detectable", "verdict")
    for row in rows:
        table.add_row(
            *(printable(row[name]) for name in ("task", "second", "first")),
            _estimate(row["difference"], row, "+"),
            f"{row['p_holm']:.2g}",
            _number(row["detectable"]),
            row["verdict"],
        )
    return table


def _forgetting(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("model", "gain", "loss", *KL_TITLES.values(), "drift")
    for row in rows:
        shares = [_estimate(row[name], _ends(row, name), "+") for name in ("gain", "loss")]
        table.add_row(printable(row["model"]), *shares, *(_number(row[name]) for name in (*KLS, "drift")))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for title in columns:
        words = title in WORDS
        table.add_column(title, justify="left" if words else "right", no_wrap=not words)
    return table


def _ends(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {"low": row[f"{name}_low"], "high": row[f"{name}_high"]}


def _estimate(value: float | None, ends: Mapping[str, Any], sign: str = "") -> str:
    if ends["low"] is None or ends["high"] is None:
        return _number(value, sign)
    return f"{_number(value, sign)} ({ends['low']:{sign}.3f} to {ends['high']:{sign}.3f})"


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.3f}"
