"""Room for rows: in memory until they are many bytes, then in files without a name, which are gone with the process.

A file's pages are the system's to keep or to write away, so that rows without bound need a disk and no memory. Its room
on the disk is taken at once: a disk that is full says so then, where a later write would end the process.
"""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from midblock.base.files import write_failure

IN_MEMORY = 2**30  # bytes


@dataclass
class Room:
    """Where tensors of one store are made.

    Attributes:
        limit: bytes that may lie in memory.
        taken: bytes that do.
    """

    limit: int = IN_MEMORY
    taken: int = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An empty tensor.

        Raises:
            MidblockError: the disk is full, or the folder for temporary files cannot be written.
        """
        size = math.prod(shape) * dtype.itemsize
        with torch.inference_mode(False):  # rows that another process found are added outside
            if not size or self.taken + size <= self.limit:
                self.taken += size
                return torch.empty(shape, dtype=dtype)
            return _mapped(shape, dtype, size)

    def give(self, tensor: Tensor) -> None:
        """Say that a tensor of `take` is not needed any more."""
        if not on_disk(tensor):
            self.taken -= tensor.nbytes


def on_disk(tensor: Tensor) -> bool:
    """Whether a tensor's numbers lie in a file."""
    return tensor.untyped_storage().filename is not None


def _mapped(shape: tuple[int, ...], dtype: torch.dtype, size: int) -> Tensor:
    try:
        with tempfile.NamedTemporaryFile(prefix="midblock-rows-") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=dtype).reshape(shape)
    except (OSError, RuntimeError) as error:
        raise write_failure(Path(tempfile.gettempdir()), error) from error
