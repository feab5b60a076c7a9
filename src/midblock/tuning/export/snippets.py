"""An adapter's plan for other trainers: PEFT's LoraConfig, and what they all want to know about the run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from midblock.base import MidblockError
from midblock.checkpoints.lora_config import LoraSettings
from midblock.tuning.export.adapter_source import AdapterSource
from midblock.tuning.loop.tune_settings import TuneSettings

NO_DATA = "data.jsonl"  # stands where the user's data belongs


def lora_config(source: AdapterSource, base: str | None = None) -> dict[str, Any]:
    """The plan as PEFT's LoraConfig: what `LoraConfig(**…)` takes, for training anew.

    Raises:
        MidblockError: the adapter is no LoRA.
    """
    if source.settings.peft_type != "LORA":
        raise MidblockError(f"{source.folder} is an adapter of type {source.settings.peft_type}, not LoRA")
    config = {name: value for name, value in source.config.items() if name != "runtime_config"}
    return {**config, "base_model_name_or_path": base or source.settings.base, "inference_mode": False}


def write_lora_config(source: AdapterSource, file: Path, base: str | None) -> list[str]:
    """Write the plan as adapter_config.json, read it back and hold it against the ranks of the adapter's tensors.

    Returns:
        Notes.

    Raises:
        MidblockError: as `lora_config`; or a module has another rank than the config says.
    """
    file.write_text(json.dumps(lora_config(source, base), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if source.config.get("target_parameters"):
        return []
    again = LoraSettings.read(file)
    with source.tensors() as own:
        again.check_patterns((factors.module for factors in source.factors(own)), source.folder)
        scales = [again.scale(factors.module, own.shape(factors.a)[0]) for factors in source.factors(own)]
    return [f"its ranks are those of the {len(scales)} adapters"]


def run_settings(source: AdapterSource) -> dict[str, Any]:
    """The run's settings; for an adapter from elsewhere, our defaults."""
    return {**asdict(TuneSettings()), **source.run}


def base_name(source: AdapterSource) -> str:
    """The base that the adapter names.

    Raises:
        MidblockError: it names none.
    """
    if not source.settings.base:
        raise MidblockError(f"the adapter {source.folder} does not say what its base is", hint="give it with --base")
    return source.settings.base


def differences(source: AdapterSource) -> list[str]:
    """What the run did that the other tool will not."""
    settings, notes = run_settings(source), []
    if settings["loss"] != "nll":
        notes.append(f"the run's loss {settings['loss']!r} is midblock's; there it will be the plain one")
    if settings["anchor"] != "none":
        notes.append(f"the run's anchor {settings['anchor']!r} is midblock's; there will be none")
    return notes
