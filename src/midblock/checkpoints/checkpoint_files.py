"""The files of a model folder that are not weights: config, tokenizer, chat template, licence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from midblock.base import replace_atomically
from midblock.checkpoints.adapter import CONFIG as ADAPTER_CONFIG
from midblock.checkpoints.config import has_tokenizer, read_config
from midblock.checkpoints.weight_files import INDEX, PICKLED_INDEX

SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken")
TERMS = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
NOT_COPIED = ("config.json", INDEX, PICKLED_INDEX, ADAPTER_CONFIG, "trainer_state.json", "tuning.json", "export.json")


def copy_small_files(source: Path, target: Path, *, code: bool = False, readme: bool = False) -> None:
    """Copy tokenizer, generation config, chat template and licence, not config.json and not the weights.

    Args:
        code: also Python files, for a model that brings its own.
        readme: also the card.
    """
    for file in sorted(source.iterdir()):
        wanted = file.suffix in SUFFIXES or file.name.upper().startswith(TERMS)
        wanted = wanted or (code and file.suffix == ".py") or (readme and file.name == "README.md")
        if wanted and file.is_file() and file.name not in NOT_COPIED:
            shutil.copyfile(file, target / file.name)


def copy_tokenizer_of_adapter(adapter: Path, target: Path) -> None:
    """Let the adapter's own tokenizer, if it ships one, replace the base's."""
    if has_tokenizer(adapter):
        copy_small_files(adapter, target)


def write_config(source: Path, target: Path, changes: Mapping[str, Any]) -> None:
    """Write config.json with some fields set, at the top and where a `text_config` has them; None takes one out."""
    config = read_config(source)
    inner = config.get("text_config")
    for name, value in changes.items():
        config[name] = value
        if isinstance(inner, dict) and name in inner:
            inner[name] = value
        for part in (config, inner):
            if value is None and isinstance(part, dict):
                part.pop(name, None)
    if "dtype" in changes:
        for part in (config, inner):
            if isinstance(part, dict):
                part.pop("torch_dtype", None)
    with replace_atomically(target / "config.json") as temporary:  # some configs hold Infinity, which JSON has not
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
