"""The first door: what was measured already, read back from run folders."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from midblock.base import MidblockError, unknown
from midblock.runs.finished import BASE, Finished, read_finished
from midblock.studies.evidence import WITNESSES, Finding
from midblock.studies.recommend.combine import combine
from midblock.studies.recommend.measured import CURVES, curves_of
from midblock.studies.recommend.recommendation import Recommendation
from midblock.studies.recommend.settings import RecommendSettings

READ = tuple(dict.fromkeys([*CURVES, *WITNESSES]))


def from_runs(folders: Sequence[Path], settings: RecommendSettings) -> Recommendation:
    """Recommend blocks from finished runs.

    Raises:
        MidblockError: a folder that holds no run of a verb that tells about depth, or runs of models of several depths.
    """
    began = time.perf_counter()
    runs = [_read(folder) for folder in folders]
    total = _depth(runs)
    model = _model(runs, settings.tuned_name)
    curves = [curve for run in runs for curve in curves_of(run, model, settings.seed)]
    findings = [found for run in runs if run.verb not in CURVES if (found := _finding(run, model)) is not None]
    return combine(
        curves,
        total,
        door="runs",
        cost={"seconds": round(time.perf_counter() - began, 3)},
        findings=findings,
        rank_budget=settings.rank_budget,
        details={"about": model},
    )


def _read(folder: Path) -> Finished:
    run = read_finished(folder)
    if run.verb not in READ:
        what = f"{folder} is a run of `{run.verb}`, which does not tell which blocks to tune"
        raise MidblockError(what, hint=f"runs of {', '.join(READ)} do")
    if run.record and not run.done:
        raise MidblockError(f"{folder} is not finished", hint="--resume finishes it")
    return run


def _depth(runs: Sequence[Finished]) -> int:
    depths = {run.folder: run.blocks for run in runs if run.measured}
    if not depths:
        raise MidblockError(f"{runs[0].folder} tells nothing of a block", hint="midblock analyze BASE TUNED")
    (first, total), *rest = depths.items()
    if other := next(((folder, depth) for folder, depth in rest if depth != total), None):
        what = f"{first} is about a model of {total} blocks, {other[0]} about one of {other[1]}"
        raise MidblockError(what, hint="recommend from runs of one model")
    return total


def _model(runs: Sequence[Finished], asked: str | None) -> str:
    """The tuned model that counts: of an analysis or a swap, for a flow names its own training only."""
    of_swaps = [str(run.summary.get("tuned")) for run in runs if run.verb == "swap"]
    names = list(dict.fromkeys([*(name for run in runs if run.verb != "flow" for name in _tuned(run)), *of_swaps]))
    if asked is not None and asked not in names:
        raise unknown("tuned model", asked, names)
    return asked or next(iter(names), BASE)


def _tuned(run: Finished) -> list[str]:
    return [] if run.verb == "swap" else run.tuned


def _finding(run: Finished, model: str) -> Finding | None:
    return WITNESSES[run.verb](run, model)
