"""What is exported: a PEFT adapter folder, alone or inside the run folder that `tune` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from midblock.base import MidblockError, user_path
from midblock.checkpoints import ModelReference, TensorReader
from midblock.checkpoints.adapter import CONFIG, WEIGHTS, settings_of
from midblock.checkpoints.adapter_names import PREFIX, unwrapped
from midblock.checkpoints.carrier_config import APPLIED
from midblock.checkpoints.carrier_config import CONFIG as CARRIER
from midblock.checkpoints.factors import read_factors
from midblock.checkpoints.hub import hub_folder
from midblock.checkpoints.lora_config import LoraSettings

STARTS = ("lora_A.weight", "lora_embedding_A")
ENDS = ("lora_B.weight", "lora_embedding_B")


@dataclass(frozen=True)
class FactorNames:
    """Where an adapted module's two factors are.

    Attributes:
        module: its name in the base, without `.weight`.
        a, b: names of the tensors A and B in the adapter's file.
    """

    module: str
    a: str
    b: str


@dataclass(frozen=True)
class AdapterSource:
    """An adapter to export; its base need not be at hand.

    Attributes:
        folder: holds adapter_config.json and adapter_model.safetensors.
        config: what adapter_config.json says.
        settings: the part of it that decides the change of the weights.
        run: the settings of the run that made it; empty for an adapter from elsewhere.
    """

    folder: Path
    config: Mapping[str, Any]
    settings: LoraSettings
    run: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def find(cls, place: str) -> AdapterSource:
        """Find the adapter at a path (an adapter folder or a run folder) or under a hub name.

        Raises:
            MidblockError: nothing there, no adapter, a whole checkpoint, or files that are missing or broken.
        """
        folder = _adapter_folder(place)
        settings = settings_of(folder)
        return cls(folder, json.loads((folder / CONFIG).read_text(encoding="utf-8")), settings, _run_settings(folder))

    def tensors(self) -> TensorReader:
        """The adapter's tensors, under PEFT's names."""
        return TensorReader.open(self.folder / WEIGHTS)

    def factors(self, own: TensorReader) -> Iterator[FactorNames]:
        """Every adapted module, with the names of its factors.

        Raises:
            MidblockError: a factor without its partner, or one that is no matrix of finite numbers; or there is none.
        """
        found = [name for name in own.names if unwrapped(name).endswith((*STARTS, *ENDS))]
        if not found:
            raise MidblockError(f"{self.folder / WEIGHTS} holds no factors of LoRA", hint="--to merged may take it")
        for name in found:
            head, _, tail = name.rpartition("lora_")
            start = unwrapped(name).endswith(STARTS)
            partner = f"{head}lora_{tail.replace('A', 'B') if start else tail.replace('B', 'A')}"
            if partner not in own:
                raise MidblockError(f"{self.folder / WEIGHTS} has {name} without {partner}")
            if not start:
                continue
            read_factors(own, partner, name, self.folder / WEIGHTS)
            module = unwrapped(head).removeprefix(PREFIX).rstrip(".")
            yield FactorNames(module.replace(".base_layer", ""), name, partner)


def _adapter_folder(place: str) -> Path:
    path = user_path(place)
    if not path.exists():
        reference = ModelReference.parse(place)
        path = hub_folder(reference) if reference.kind == "hub" else path
    for folder in (path, path / "adapter"):
        if (folder / CONFIG).exists():
            return folder
    for folder in (path, path / "model"):
        if (folder / "config.json").exists():
            raise MidblockError(f"{place} is already a whole checkpoint: {folder}", hint="there is nothing to export")
    if any((folder / CARRIER).exists() for folder in (path, path / "carrier")) or "+" in place:
        raise MidblockError(f"{place} is a carrier, no adapter", hint=APPLIED)
    if (path / "run.json").exists():
        raise MidblockError(f"the run {place} has no adapter", hint="a finished run of `midblock tune` has")
    raise MidblockError(f"{place} is no adapter", hint=f"a folder with {CONFIG}, or a run folder of `midblock tune`")


def _run_settings(adapter: Path) -> Mapping[str, Any]:
    file = adapter.parent / "config.yaml"
    if adapter.name != "adapter" or not (adapter.parent / "run.json").exists() or not file.exists():
        return {}
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise MidblockError(f"{file} cannot be read", hint=f"give {adapter} itself to do without it") from error
    return settings if isinstance(settings, dict) else {}
