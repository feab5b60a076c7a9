"""Tensors in a file that says whose they are and what they hold, under a checksum (`base.seal`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from midblock.base import MidblockError, replace_atomically
from midblock.base.seal import DamagedError, Seal

# What the reader and torch raise of bytes that are no safetensors file, or not the one that was written.
UNREADABLE = (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError, OverflowError)


def write_sealed(file: Path, tensors: Mapping[str, Tensor], owner: str, holds: Mapping[str, Any]) -> None:
    """Write tensors.

    Args:
        owner, holds: as of `Seal`.

    Raises:
        MidblockError: the disk is full, or the place cannot be written.
    """
    flat = {name: values.detach().cpu().contiguous() for name, values in tensors.items()}
    seal = Seal.of(owner, holds, _content(flat))
    with replace_atomically(file) as path:
        # safetensors' own writing hides a full disk in an error of its kind
        path.write_bytes(save(flat, {"seal": json.dumps(seal.as_record())}))


def read_sealed(file: Path, owner: str) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Read tensors, and what they hold.

    Raises:
        DamagedError: the file has changed since it was written.
        MidblockError: it is another owner's, has no seal, or the system does not let it be read.
    """
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise MidblockError(f"cannot read {file}: {error.strerror or error}") from error
    try:
        with safe_open(file, framework="pt") as opened:
            told = (opened.metadata() or {}).get("seal")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        record = None if told is None else json.loads(told)
    except UNREADABLE as error:
        raise DamagedError(f"{file.name} is damaged") from error
    return tensors, Seal.check(record, file, _content(tensors), owner)


def _content(tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    for name in sorted(tensors):
        values = tensors[name]
        yield json.dumps([name, str(values.dtype), list(values.shape)]).encode()
        yield values.reshape(-1).view(torch.uint8).numpy()
