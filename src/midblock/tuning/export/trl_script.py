"""An adapter's plan as a Python script that trains with TRL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from midblock.base.quoting import python_arguments, python_docstring, python_literal
from midblock.checkpoints.adapter import CONFIG
from midblock.data.derived import Derived, source_of
from midblock.tuning.export.adapter_source import AdapterSource
from midblock.tuning.export.snippets import NO_DATA, base_name, differences, lora_config, run_settings

# what PEFT notes about a file, or fills in by itself
NOT_PLANNED = (
    "auto_mapping", "base_model_name_or_path", "inference_mode", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "revision", "runtime_config",
)  # fmt: skip
SAME = (
    "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps",
    "warmup_steps", "lr_scheduler_type", "optim", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay",
    "max_grad_norm", "max_length", "gradient_checkpointing", "seed", "logging_steps",
)  # fmt: skip
SCRIPT = Template('''\
"""Train $base with TRL on the plan of an adapter: the same modules, ranks and scales."""

import torch
from datasets import Dataset
from midblock import load_dataset  # reads any column layout
${import_base}from peft import LoraConfig
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

SEED = $seed
BASE = $base_name
DATA = $data

peft_config = LoraConfig(
$lora)

examples = load_dataset(DATA$drawn)
dataset = Dataset.from_list([$row for example in examples])

args = SFTConfig(
    output_dir="trl-output",
$settings    # below frozen blocks the reentrant kind gives no gradient
    gradient_checkpointing_kwargs={"use_reentrant": False},
    bf16=torch.cuda.is_available(),
    report_to="none",
)
set_seed(SEED)  # older versions of TRL seed only after the adapter has been drawn
trainer = SFTTrainer(model=BASE, args=args, train_dataset=dataset, peft_config=peft_config)
trainer.train()
trainer.save_model(args.output_dir)
''')


def write_trl(source: AdapterSource, file: Path, base: str | None) -> list[str]:
    """Write a Python script that trains the same plan with TRL's SFTTrainer.

    Returns:
        What to look at before running it.

    Raises:
        MidblockError: the adapter is no LoRA, its base is not known, or something is no plain value.
    """
    settings, notes = run_settings(source), differences(source)
    if "data" not in source.run:
        notes.append(f"DATA in the script is {NO_DATA}: put yours there")
    if settings["load_in_4bit"]:
        notes.append("the run held the base in 4 bits; the script holds it whole")
    name = base or base_name(source)
    quoted = python_literal(name, "the base's name")
    ours = name.startswith("builtin:") or name.lower().endswith(".gguf")  # names that transformers cannot load
    drawn = {"split": _split(settings), "num_samples": settings["num_samples"], "seed": settings["seed"]}
    template = {"chat_template_path": settings["template"]} if settings["template"].endswith(".jinja") else {}
    planned = {key: value for key, value in lora_config(source).items() if _said(key, value)}
    script = SCRIPT.substitute(
        base=python_docstring(name),
        seed=python_literal(settings["seed"], "the seed"),
        base_name=f"str(open_checkpoint({quoted}).folder)" if ours else quoted,
        import_base="from midblock.checkpoints import open_checkpoint\n" if ours else "",
        data=python_literal(settings.get("data", NO_DATA), "the data"),
        lora=python_arguments(planned, str(source.folder / CONFIG)),
        drawn="".join(f", {key}={python_literal(value, key)}" for key, value in drawn.items() if value is not None),
        row=_row(settings),
        settings=python_arguments({key: settings[key] for key in SAME} | template, "the run's settings"),
    )
    file.write_text(script, encoding="utf-8")
    return notes


def _split(settings: Mapping[str, Any]) -> str | None:
    data = str(settings.get("data", ""))
    derived = Derived.parse(data)
    divided = derived is not None and bool(derived.behaviour)
    return settings["split"] or ("train" if divided or source_of(data).startswith("builtin:") else None)


def _row(settings: Mapping[str, Any]) -> str:
    if settings["train_on_prompt"] and settings["template"] == "raw":
        return '{"text": example.text}'
    if settings["template"] == "raw":
        return '{"prompt": example.prompt + example.separator, "completion": example.completion}'
    if settings["train_on_prompt"]:
        return '{"messages": [m.as_turn() for m in example.messages]}'
    turns = "[m.as_turn() for m in example.messages[%s]]"
    return f'{{"prompt": {turns % ":-1"}, "completion": {turns % "-1:"}}}'


def _said(name: str, value: Any) -> bool:
    """Whether a field of the config says something that is not PEFT's default."""
    if name in NOT_PLANNED or value in (None, False, [], {}):
        return False
    return not (name == "bias" and value == "none") and not (name == "init_lora_weights" and value is True)
