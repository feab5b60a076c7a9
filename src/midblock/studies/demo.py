"""The demo: tune the embedded model a little, for real, and measure what that did."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import yaml

from midblock.base import LayerTable, Progress, RunFolder, Silent
from midblock.checkpoints import load_pair
from midblock.metrics import analyze
from midblock.tuning import TuneSettings, tune

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
        device: `cpu`, `cuda`, …; `auto` takes the accelerator if there is one.

    Returns:
        The analysis' table and its run folder.

    Raises:
        MidblockError: the embedded model or its data cannot be had (the message says what to install).
    """
    output, progress = Path(output_dir), progress or Silent()
    partner, analysis = output / "sft", output / "analysis"
    fresh = overwrite or not _made_with(partner, tuning)
    # What was measured on the old partner must not be taken for the new one's, should this be stopped here.
    if fresh and (analysis / "run.json").exists():
        RunFolder.check(analysis, "analyze", {}, overwrite=True)
        shutil.rmtree(analysis)
    options = {**asdict(tuning), "device": device}
    layers = options.pop("layers")
    tune(BASE, DATA, layers, output_dir=partner, resume=not fresh, overwrite=fresh, progress=progress, **options)
    reuse = not fresh and _analyzed_with(analysis, num_samples)
    table = analyze(
        load_pair(BASE, str(partner), device=device),
        DATA,
        split="test",
        num_samples=num_samples,
        num_token_samples=min(32, num_samples),
        output_dir=analysis,
        resume=reuse,
        overwrite=not reuse,
        progress=progress,
        command=command,
    )
    return table, analysis


def _made_with(partner: Path, tuning: TuneSettings) -> bool:
    """Whether the tuned partner, finished or not, was begun with these settings."""
    try:
        config = yaml.safe_load((partner / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return False
    wanted = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(tuning).items()}
    return isinstance(config, dict) and all(config.get(name) == value for name, value in wanted.items())


def _analyzed_with(analysis: Path, num_samples: int) -> bool:
    try:
        config = yaml.safe_load((analysis / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return False
    return isinstance(config, dict) and config.get("num_samples") == num_samples
