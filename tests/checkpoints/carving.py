"""Carriers of pico models with planted masks: every parameter may have entries, some have none."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from midblock.checkpoints import Carrier, CarrierConfig, Entries, open_checkpoint, write_carrier

NOT_HASHED = "0" * 64


def planted(tuned: nn.Module, share: float = 0.5, seed: int = 0, moves: Callable[[str], bool] = lambda name: True):
    """Entries at random rows and columns of each parameter that `moves` says yes to."""
    stream = torch.Generator().manual_seed(seed)
    found = {}
    for name, value in tuned.named_parameters():
        kept = tuple(torch.rand(side, generator=stream) < share for side in value.shape)
        if moves(name) and all(bool(each.any()) for each in kept):
            found[name] = Entries.of(value, kept)
    return found


def where(model: nn.Module, entries: dict[str, Entries]) -> dict[str, torch.Tensor]:
    """Which entries of each parameter are carried, as a whole mask."""
    masks = {name: torch.zeros(value.shape, dtype=torch.bool) for name, value in model.named_parameters()}
    for name, each in entries.items():
        each.put(masks[name], torch.ones(each.values.shape, dtype=torch.bool))
    return masks


def config_of(tuned: nn.Module, base: str = "base", base_hash: str = NOT_HASHED) -> CarrierConfig:
    shapes = {name: tuple(value.shape) for name, value in tuned.named_parameters()}
    kind = tuned.config.model_type
    return CarrierConfig(base, base_hash, kind, "tuned", NOT_HASHED, shapes, {"method": "planted"})


def in_memory(tuned: nn.Module, entries: dict[str, Entries]) -> Carrier:
    return Carrier(config_of(tuned), entries)


def on_disk(folder: Path, base: Path, tuned: nn.Module, entries: dict[str, Entries]) -> Carrier:
    """A carrier's folder that names its base."""
    config = config_of(tuned, str(base), open_checkpoint(str(base)).weight_hash())
    return write_carrier(folder, entries, {(0, "q"): torch.tensor([True, False])}, config)


def same(model: nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    """Whether a model has these parameters to the bit."""
    found = dict(model.named_parameters())
    return found.keys() == expected.keys() and all(torch.equal(found[name], value) for name, value in expected.items())


def values_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}
