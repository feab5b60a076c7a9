"""A tuned partner for timing: the embedded model with every weight moved a little; speed does not depend on values."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from midblock.checkpoints import open_checkpoint

BASE = "builtin:smollm2-135m-instruct"


def make_partner(folder: Path) -> Path:
    """Write the perturbed copy to `folder`."""
    checkpoint = open_checkpoint(BASE)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    with checkpoint.tensors() as tensors:
        moved = {name: value * (1 + 1e-2 * torch.randn_like(value)) for name, value in tensors.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    for file in checkpoint.folder.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    return folder
