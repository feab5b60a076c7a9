"""An adapter's plan as an Axolotl recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from midblock.base import MidblockError
from midblock.base.yaml_text import yaml_text
from midblock.checkpoints.adapter import CONFIG
from midblock.checkpoints.lora_config import NOT_LOW_RANK
from midblock.data.derived import source_of
from midblock.data.hub import HUB_SETS
from midblock.tuning.export.adapter_source import AdapterSource
from midblock.tuning.export.snippets import NO_DATA, base_name, differences, lora_config, run_settings

# our options → its keys
KEYS = {
    "learning_rate": "learning_rate",
    "per_device_train_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "num_train_epochs": "num_epochs",
    "max_length": "sequence_len",
    "optim": "optimizer",
    "lr_scheduler_type": "lr_scheduler",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "gradient_checkpointing": "gradient_checkpointing",
    "seed": "seed",
}
# column layouts → its prompt types
TYPES: Mapping[str, Any] = {
    "instruction/input/output": "alpaca",
    "question/answer": {"field_instruction": "question", "field_output": "answer", "format": "{instruction}\n"},
    "text": {"type": "completion", "field": "text"},
    "wikitext": {"type": "completion", "field": "text"},
}


def write_axolotl(source: AdapterSource, file: Path, base: str | None) -> list[str]:
    """Write an Axolotl recipe.

    Returns:
        What to look at before using it.

    Raises:
        MidblockError: the plan has several ranks or scales, or something else Axolotl has no key for.
    """
    rank, alpha, targets = _equal_plan(source)
    settings, notes = run_settings(source), differences(source)
    data, more = _data(settings)
    quantised = settings["load_in_4bit"]
    recipe: dict[str, Any] = {
        "base_model": base or base_name(source),
        "load_in_4bit": quantised or None,
        "adapter": "qlora" if quantised else "lora",
        "lora_r": rank,
        "lora_alpha": alpha,
        "lora_dropout": _dropout(source),
        **targets,
        "lora_modules_to_save": list(source.settings.modules_to_save) or None,
        "peft_use_rslora": source.settings.use_rslora or None,
        "peft_use_dora": source.config.get("use_dora") or None,
        "datasets": [data],
        "train_on_inputs": settings["train_on_prompt"],
        **{theirs: settings[ours] for ours, theirs in KEYS.items()},
        "output_dir": "axolotl-output",
    }
    if settings["max_steps"] > 0:
        recipe["max_steps"] = settings["max_steps"]
    if warmup := settings["warmup_steps"]:
        recipe["warmup_ratio" if warmup < 1 else "warmup_steps"] = warmup
    kept = {name: value for name, value in recipe.items() if value is not None}
    file.write_text(yaml_text(kept), encoding="utf-8")
    return [*notes, *more]


def _equal_plan(source: AdapterSource) -> tuple[int, int, dict[str, Any]]:
    """The one rank and alpha of a plan, and where its adapters are, as Axolotl's keys."""
    for name, title in NOT_LOW_RANK.items():
        if name != "use_dora" and source.config.get(name):
            raise MidblockError(f"{source.folder}: Axolotl's recipe is not made for {title}", hint="--to trl takes it")
    if source.config.get("bias", "none") != "none":
        raise MidblockError(f"{source.folder}: Axolotl trains no biases beside adapters", hint="--to trl takes it")
    lora_config(source)
    with source.tensors() as own:
        found = [(factors.module, own.shape(factors.a)[0]) for factors in source.factors(own)]
    source.settings.check_patterns((module for module, _ in found), source.folder)
    scales = {(rank, source.settings.scale(module, rank)) for module, rank in found}
    if len(scales) > 1:
        said = ", ".join(f"{rank} at scale {scale:g}" for rank, scale in sorted(scales))
        hint = "tune with equal ranks on all chosen blocks, or --to lora-config, --to trl"
        raise MidblockError(f"Axolotl knows one rank for all adapters, this plan has {said}", hint=hint)
    ((rank, scale),) = scales
    alpha = scale * (rank**0.5 if source.settings.use_rslora else rank)
    if abs(alpha - round(alpha)) > 1e-9 * alpha:
        raise MidblockError(f"Axolotl wants a whole lora_alpha, this plan has {alpha:g}", hint="--to lora-config")
    return rank, round(alpha), _targets([module for module, _ in found])


def _dropout(source: AdapterSource) -> float:
    found = source.config.get("lora_dropout") or 0.0
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < 1:
        raise MidblockError(f"{source.folder / CONFIG}: lora_dropout cannot be {found!r:.80}")
    return found


def _block_of(module: str) -> int | None:
    """The block in a module's path: its first whole number; the base, which would know better, need not be at hand."""
    return next((int(part) for part in module.split(".") if part.isdigit()), None)


def _targets(modules: list[str]) -> dict[str, Any]:
    """The modules as projections × blocks where they are such a product, else by their full names."""
    blocks = {block for module in modules if (block := _block_of(module)) is not None}
    inside = {module.partition(f".{_block_of(module)}.")[2] for module in modules}
    prefixes = {module.partition(f".{_block_of(module)}.")[0] for module in modules}
    if len(prefixes) == 1 and "" not in inside and len(modules) == len(blocks) * len(inside):
        return {"lora_target_modules": sorted(inside), "peft_layers_to_transform": sorted(blocks)}
    return {"lora_target_modules": sorted(modules)}


def _data(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    reference = str(settings.get("data", NO_DATA))
    name, _, config = reference.partition("@")
    known = HUB_SETS.get(name)
    shape = TYPES.get(known.layout or "", "chat_template") if known else "chat_template"
    data: dict[str, Any] = {"path": known.hub_id if known else name}
    if config or (known and known.config):
        data["name"] = config or (known.config if known else None)
    if Path(name).suffix in (".jsonl", ".json", ".parquet"):
        data["ds_type"] = "parquet" if name.endswith(".parquet") else "json"
    elif known or settings["split"]:
        data["split"] = settings["split"] or (known.split if known else "train")
    data |= shape if isinstance(shape, dict) and "type" in shape else {"type": shape}
    notes = []
    if source_of(name).startswith("builtin:") or source_of(name) != name:
        notes.append(f"{name} is made by midblock: write it to a .jsonl file and name that under datasets")
    elif not known:
        notes.append("look at datasets in the recipe: path and type must fit your columns")
    if settings["num_samples"]:
        notes.append(f"the run drew {settings['num_samples']} examples, the recipe takes all of the split")
    return data, notes
