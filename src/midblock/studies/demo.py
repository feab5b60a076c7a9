"""The demo: tune the embedded model a little, for real, and measure what that did."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from midblock.analysis import AnalysisSettings, analyze
from midblock.analysis.analyze import analysis_draft
from midblock.base import LayerTable, MidblockError, Progress, user_path
from midblock.checkpoints import load_pair
from midblock.runs.folder import RunFolder, Standing, discard, standing
from midblock.runs.lock import check_not_held, occupied
from midblock.runs.request import Draft
from midblock.runs.where import Where
from midblock.tuning import TuneSettings, tune
from midblock.tuning.loop.tune import tune_draft

BASE = "builtin:smollm2-135m-instruct"
DATA = "builtin:gsm_symbolic"
ANALYSIS = "analysis"  # the folder of the comparison
ANEW = "--overwrite makes the demo anew, or choose another --output-dir"
# All weights, at a rate and for a time that a laptop has patience for.
TUNING = TuneSettings(
    method="full",
    also=("embedding", "final_norm"),
    max_steps=40,
    num_samples=160,
    max_length=160,
    learning_rate=2e-5,
    warmup_steps=0.1,
    save_steps=0,
)


def demo(
    output_dir: Path | str = "runs/demo",
    *,
    overwrite: bool = False,
    num_samples: int = 96,
    progress: Progress | None = None,
    command: str | None = None,
    tuning: TuneSettings = TUNING,
    device: str = "auto",
) -> tuple[LayerTable, Path]:
    """Make a tuned partner of the embedded model and analyze the pair on held-out prompts.

    What is there already is used again: the tuned model if it was made with the same settings, and the analysis,
    finished or not.

    Args:
        output_dir: gets `sft/` (the run folder of the tuning) and `analysis/` (that of the comparison).
        overwrite: make everything anew; other runs that lie in these two folders are replaced.
        num_samples: held-out prompts to compare the models on.
        progress: told how far it got.
        command: how it was called, recorded.
        tuning: how the partner is made.
        device: `cpu`, `cuda`, …; `auto` takes the accelerator if there is one.

    Returns:
        The analysis' table and its run folder.

    Raises:
        MidblockError: the embedded model or its data cannot be had (the message says what to install), or one of the
            two folders holds another run.

    Example:
        >>> table, folder = demo("runs/demo", num_samples=8)
        >>> table.models
        ['base', 'sft']
    """
    output = user_path(output_dir)
    partner, analysis = output / "sft", output / ANALYSIS
    asked = {**asdict(tuning), "device": device}
    again: dict[str, Any] = {"resume": not overwrite, "overwrite": overwrite}
    draft = tune_draft(BASE, DATA, **asked)
    if overwrite:
        check_not_held(partner)
        RunFolder.check(partner, draft, Where(output_dir=partner, overwrite=True))
        discard(analysis)  # first: beside a new partner, or half of one, it would be another model's
    else:
        _check_partner(partner, analysis, draft)
    tune(BASE, DATA, **asked, output_dir=partner, progress=progress, **again)
    pair = load_pair(BASE, str(partner), device=device)
    measuring = AnalysisSettings(split="test", num_samples=num_samples, num_token_samples=min(32, num_samples))
    if not overwrite:
        _check_same(analysis, standing(analysis, analysis_draft(pair, DATA, measuring)))
    table = analyze(pair, DATA, **asdict(measuring), output_dir=analysis, progress=progress, command=command, **again)
    return table, analysis


def _check_partner(partner: Path, analysis: Path, draft: Draft) -> None:
    """Refuse to make a partner where somebody's tuning lies, or beside an analysis that cannot be of it."""
    found = standing(partner, draft)
    _check_same(partner, found)
    if not found.finished and occupied(analysis):
        raise MidblockError(f"{analysis} is of another tuned model", hint=ANEW)


def _check_same(folder: Path, found: Standing) -> None:
    """Raise MidblockError for a folder that holds anything but the demo's own run."""
    if not found.same and not found.empty:
        other = ", ".join((*found.differences, *(f"{name} changed" for name in found.changed)))
        raise MidblockError(f"{folder} holds another run than the demo's: {other}", hint=ANEW)
