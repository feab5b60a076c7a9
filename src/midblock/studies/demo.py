"""The demo: tune the embedded model a little, for real, and measure what that did."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import yaml

from midblock.base import LayerTable, Progress, Silent
from midblock.checkpoints import load_pair, open_checkpoint
from midblock.data import load_dataset
from midblock.metrics import analyze
from midblock.tuning import FullTuning, tune_fully

BASE = "builtin:smollm2-135m-instruct"
DATA = "builtin:gsm_symbolic"


def demo(
    output_dir: Path | str = "runs/demo",
    *,
    overwrite: bool = False,
    num_samples: int = 96,
    progress: Progress | None = None,
    command: str | None = None,
    tuning: FullTuning | None = None,
) -> tuple[LayerTable, Path]:
    """Make a tuned partner of the embedded model and analyze the pair on held-out prompts.

    What is there already is used again: the tuned model if it was made with the same settings, and the analysis,
    finished or not.

    Args:
        output_dir: gets `sft/` (the tuned model) and `analysis/` (the run folder).
        overwrite: make everything anew.
        num_samples: held-out prompts to compare the models on.

    Returns:
        The analysis' table and its run folder.

    Raises:
        MidblockError: the embedded model or its data cannot be had (the message says what to install).
    """
    output, tuning, progress = Path(output_dir), tuning or FullTuning(), progress or Silent()
    base = open_checkpoint(BASE)
    partner, analysis = output / "sft", output / "analysis"
    fresh = overwrite or not _made_with(partner, tuning)
    if fresh:
        wanted = tuning.max_steps * tuning.per_device_train_batch_size
        data = load_dataset(DATA, split="train", num_samples=wanted, seed=tuning.seed)
        # What was measured on the old partner must not be taken for the new one's, should this be stopped here.
        if (analysis / "run.json").exists():
            shutil.rmtree(analysis)
        tune_fully(base, data, partner, tuning, progress)
    reuse = not fresh and _analyzed_with(analysis, num_samples)
    table = analyze(
        load_pair(BASE, str(partner), device=tuning.device),
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


def _made_with(partner: Path, tuning: FullTuning) -> bool:
    try:
        record = json.loads((partner / "tuning.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(record.get(name) == value for name, value in asdict(tuning).items())


def _analyzed_with(analysis: Path, num_samples: int) -> bool:
    try:
        config = yaml.safe_load((analysis / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return False
    return isinstance(config, dict) and config.get("num_samples") == num_samples
