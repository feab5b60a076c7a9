"""An adapter's plan for other trainers: PEFT's LoraConfig, and what they all want to know about the run."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from midblock.base import MidblockError
from midblock.base.quoting import is_argument
from midblock.checkpoints.adapter import CONFIG
from midblock.checkpoints.lora_config import LoraSettings
from midblock.tuning.export.adapter_source import AdapterSource
from midblock.tuning.loop.tune_settings import TuneSettings

NO_DATA = "data.jsonl"  # stands where the user's data belongs


def lora_config(source: AdapterSource, base: str | None = None) -> dict[str, Any]:
    """The plan as PEFT's LoraConfig: what `LoraConfig(**…)` takes, for training anew.

    Raises:
        MidblockError: the adapter is no LoRA, or its config has a key that is no name of an option.
    """
    for strange in (name for name in source.config if not is_argument(name)):
        raise MidblockError(f"{source.folder / CONFIG}: {strange!r} is no option of PEFT's", hint="take it out")
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
    try:
        text = json.dumps(lora_config(source, base), indent=2, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise MidblockError(f"{source.folder / CONFIG} holds a number that is not finite") from error
    file.write_text(f"{text}\n", encoding="utf-8")
    if source.config.get("target_parameters"):
        return []
    again = LoraSettings.read(file)
    with source.tensors() as own:
        again.check_patterns((factors.module for factors in source.factors(own)), source.folder)
        scales = [again.scale(factors.module, own.shape(factors.a)[0]) for factors in source.factors(own)]
    return [f"its ranks are those of the {len(scales)} adapters"]


def run_settings(source: AdapterSource) -> dict[str, Any]:
    """The run's settings; for an adapter from elsewhere, our defaults.

    Raises:
        MidblockError: the run's config.yaml, which comes with the adapter, gives an option a value of another type.
    """
    kinds = {**get_type_hints(TuneSettings), "data": str}
    for name, value in source.run.items():
        if name in kinds and not _fits(value, kinds[name]):
            what = f"{source.folder.parent / 'config.yaml'}: {name} cannot be {value!r:.80}"
            raise MidblockError(what, hint=f"give {source.folder} itself to do without it")
    return {**asdict(TuneSettings()), **source.run}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value read from a file is of an option's type."""
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(_fits(each, get_args(kind)[0]) for each in value)
    if get_origin(kind) is UnionType:
        return any(_fits(value, each) for each in get_args(kind))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is kind


def base_name(source: AdapterSource) -> str:
    """The base that the adapter names.

    Raises:
        MidblockError: it names none.
    """
    if not isinstance(source.settings.base, str) or not source.settings.base.strip():
        raise MidblockError(f"the adapter {source.folder} does not say what its base is", hint="give it with --base")
    return source.settings.base


def differences(source: AdapterSource) -> list[str]:
    """What the run did that the other tool will not."""
    settings, notes = run_settings(source), []
    if settings["loss"] != "nll":
        notes.append(f"the run's loss {settings['loss']!r} is midblock's; there it will be the plain one")
    if settings.get("lr_by_depth") is not None:
        notes.append("the run's learning rate went by depth; there it will be the same everywhere")
    if settings["anchor"] != "none":
        notes.append(f"the run's anchor {settings['anchor']!r} is midblock's; there will be none")
    return notes
