"""The best carrier so far, on disk: the sparsest whose loss is within its budget.

Training goes on from it and may lose it again, so it is written down when it is found, one that is 2 % sparser at a
time. Cost: a writing of its entries each time, a hundred times in a run at most.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from safetensors import safe_open
from torch import Tensor

from midblock.base import replace_atomically
from midblock.checkpoints.tensor_writer import write_tensors
from midblock.tuning.carve.channels import ChannelGroups
from midblock.tuning.carve.selected import SelectedWeight

NAME = "best.safetensors"
SPARSER = 0.98
MASKS = "masks."


@dataclass(frozen=True)
class Found:
    """A carrier and what it came to.

    Attributes:
        step: how many steps were taken when it was found.
        share: of masks that are on.
        loss: the loss's running mean.
    """

    step: int
    share: float
    loss: float

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def write_state(
    file: Path,
    weights: Mapping[str, SelectedWeight],
    groups: ChannelGroups,
    on: Mapping[int, Bool[Tensor, "_"]],
) -> None:
    """Write masks, and the values of the entries that they select."""
    kept = {name: groups.channels[name].kept(on[weight.layer].cpu()) for name, weight in weights.items()}
    entries: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        f"{MASKS}{layer}": (torch.uint8, (len(each),)) for layer, each in on.items()
    }
    for name, weight in weights.items():
        shape = [
            size if places is None else len(places)
            for size, places in zip(weight.parameter.shape, kept[name], strict=True)
        ]
        entries[name] = (weight.parameter.dtype, tuple(shape))

    def read(name: str) -> Tensor:
        if name.startswith(MASKS):
            return on[int(name.removeprefix(MASKS))].cpu().to(torch.uint8)
        return weights[name].tuned(kept[name]).detach().cpu()

    file.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(file) as temporary:
        write_tensors(temporary, entries, read)


def read_masks(file: Path, groups: ChannelGroups) -> dict[int, Bool[Tensor, "_"]]:
    """The masks that `write_state` wrote."""
    with safe_open(file, framework="pt") as opened:
        return {layer: opened.get_tensor(f"{MASKS}{layer}") > 0 for layer in groups.layers}


def put(source: Path, target: Path) -> None:
    """The same file in another place, at no cost where the file system has links."""
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
