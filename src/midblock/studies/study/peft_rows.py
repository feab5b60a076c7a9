"""Trials in the format of PEFT's MetaMathQA comparison: a JSON file each, whose fields are theirs.

Facts of the format: github.com/huggingface/peft, method_comparison/MetaMathQA. What is not measured here is null.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from midblock.base import write_json
from midblock.base.options import divide
from midblock.checkpoints import LoadSettings
from midblock.runs.lenient import read_json
from midblock.runs.surroundings import surroundings
from midblock.studies.study.results import TRIALS, Result
from midblock.studies.study.study_file import StudyFile
from midblock.studies.study.trials import BASE, Trial, tune_options
from midblock.tuning import TuneSettings

FOLDER = "peft_comparison"
PACKAGES = ("transformers", "peft", "datasets", "torch")


def write_peft_rows(study: StudyFile, trials: Sequence[Trial], results: Mapping[str, Result], folder: Path) -> None:
    """Write the trials that were tested, and those that failed.

    Args:
        folder: of the study.
    """
    base = results.get(BASE, Result())
    for trial in trials:
        result = results.get(trial.name, Result())
        if result.failed or "evaluate" in result.files:
            record = peft_row(study, trial, result, base, folder / TRIALS / trial.name)
            write_json(folder / FOLDER / f"{trial.options.get('method', 'lora')}--{trial.name}.json", record)


def peft_row(study: StudyFile, trial: Trial, result: Result, base: Result, folder: Path) -> dict[str, Any]:
    """One trial.

    Args:
        base: what the base scored, for forgetting.
        folder: of the trial.
    """
    settings, loading = divide(tune_options(trial), TuneSettings, LoadSettings)
    tuned = result.files.get("tune", {})
    now = surroundings()
    return {
        "run_info": {
            "created_at": now["started"],
            "total_time": result.seconds,
            "experiment_name": f"{settings.method}/{trial.name}",
            "peft_branch": None,
            "train_config": _train_config(study, settings, loading),
            "peft_config": read_json(folder / str(tuned.get("artifact", "")) / "adapter_config.json", {}) or None,
            "error_msg": result.failed,
        },
        "train_info": {
            "accelerator_memory_reserved_avg": None,
            "accelerator_memory_max": _bytes(result.peak_memory_gb),
            "accelerator_memory_reserved_99th": None,
            "train_time": tuned.get("seconds"),
            "file_size": _file_size(folder / str(tuned.get("artifact", ""))) if tuned else None,
            "num_trainable_params": tuned.get("parameters"),
            "num_total_params": tuned.get("total_parameters"),
            "status": "failed" if result.failed else "success",
            "metrics": [_metrics(tuned, result, base)] if tuned else [],
        },
        "meta_info": {
            "model_info": {"sha": None, "created_at": None},
            "dataset_info": {study.data: {"sha": None, "created_at": None}},
            "package_info": {f"{name}-version": now["versions"].get(name) for name in PACKAGES},
            "system_info": {"system": platform.system(), "release": platform.release(), "machine": platform.machine()},
            "pytorch_info": None,
        },
    }


def _train_config(study: StudyFile, settings: TuneSettings, loading: LoadSettings) -> dict[str, Any]:
    return {
        "model_id": study.base,
        "dtype": loading.dtype,
        "max_seq_length": settings.max_length,
        "batch_size": settings.per_device_train_batch_size * settings.gradient_accumulation_steps,
        "max_steps": settings.max_steps,
        "compile": False,
        "use_gc": settings.gradient_checkpointing,
        "seed": settings.seed,
        "grad_norm_clip": settings.max_grad_norm,
        "optimizer_type": settings.optim,
        "optimizer_kwargs": {"lr": settings.learning_rate, "weight_decay": settings.weight_decay},
        "lr_scheduler": settings.lr_scheduler_type,
        "use_amp": False,
        "generation_kwargs": {"max_new_tokens": study.evaluate.get("max_new_tokens")},
        "attn_implementation": loading.attn_implementation,
    }


def _metrics(tuned: Mapping[str, Any], result: Result, base: Result) -> dict[str, Any]:
    """The last line of theirs, with the score, and with what general tasks lost against the base (`forgetting`)."""
    found: dict[str, Any] = {"step": tuned["steps"], "train loss": tuned["nll"]["last"]}
    found["train total tokens"] = tuned.get("tokens")
    before = {told["task"]: told["value"] for told in base.tasks("evaluate")}
    validated, tested = result.tasks("validate"), result.tasks("evaluate")
    if validated:
        found["valid accuracy"] = validated[0]["value"]
    if tested:
        found["test accuracy"] = tested[0]["value"]
    lost = {told["task"]: before[told["task"]] - told["value"] for told in tested
            if told["general"] and told["task"] in before}  # fmt: skip
    return found | ({"forgetting": lost} if lost else {})


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else round(gigabytes * 2**30)


def _file_size(artifact: Path) -> int:
    return sum(file.stat().st_size for file in artifact.glob("*.safetensors"))
