"""The demo: tune the embedded model a little, for real, and measure what that did."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from midblock.analysis import AnalysisSettings, analyze
from midblock.analysis.analyze import analysis_draft
from midblock.base import LayerTable, Progress
from midblock.checkpoints import load_pair
from midblock.runs.folder import discard, standing
from midblock.tuning import TuneSettings, tune
from midblock.tuning.loop.tune import tune_draft

BASE = "builtin:smollm2-135m-instruct"
DATA = "builtin:gsm_symbolic"
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
        overwrite: make everything anew.
        num_samples: held-out prompts to compare the models on.
        progress: told how far it got.
        command: how it was called, recorded.
        tuning: how the partner is made.
        device: `cpu`, `cuda`, …; `auto` takes the accelerator if there is one.

    Returns:
        The analysis' table and its run folder.

    Raises:
        MidblockError: the embedded model or its data cannot be had (the message says what to install).

    Example:
        >>> table, folder = demo("runs/demo", num_samples=8)
        >>> table.models
        ['base', 'sft']
    """
    output = Path(output_dir)
    partner, analysis = output / "sft", output / "analysis"
    asked = {**asdict(tuning), "device": device}
    fresh = overwrite or not standing(partner, tune_draft(BASE, DATA, **asked)).same
    if fresh:
        # What was measured on the old partner must not be taken for the new one's, should this be stopped here.
        discard(analysis)
    tune(BASE, DATA, **asked, output_dir=partner, resume=not fresh, overwrite=fresh, progress=progress)
    pair = load_pair(BASE, str(partner), device=device)
    measuring = AnalysisSettings(split="test", num_samples=num_samples, num_token_samples=min(32, num_samples))
    reuse = standing(analysis, analysis_draft(pair, DATA, measuring)).same
    table = analyze(
        pair,
        DATA,
        **asdict(measuring),
        output_dir=analysis,
        resume=reuse,
        overwrite=not reuse,
        progress=progress,
        command=command,
    )
    return table, analysis
