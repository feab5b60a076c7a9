"""A safetensors file written tensor by tensor, or piece by piece, so that memory never holds a whole shard."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from midblock.base.files import write_failure
from midblock.checkpoints.safetensors_file import DTYPES

NAMES = {dtype: name for name, dtype in DTYPES.items()}
PAGE = 4096  # bytes; the header is padded to it with spaces, as the format allows: whole pages are written faster


@dataclass(frozen=True)
class FileLayout:
    """Where everything of a safetensors file will lie.

    Attributes:
        header: the file's first bytes.
        starts: the first byte of each tensor, counted from the file's beginning, in the order they lie there: tensors
            of whole pages first, so that they begin with one.
        size: of the tensors together, in bytes.
    """

    header: bytes
    starts: Mapping[str, int]
    size: int

    @property
    def end(self) -> int:
        """The file's size, in bytes."""
        return len(self.header) + self.size

    @classmethod
    def of(cls, entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> FileLayout:
        """Lay out tensors of these types and shapes; wider types come first, so that all stay aligned."""
        fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
        starts, end = {}, 0
        sizes = {name: math.prod(shape) * dtype.itemsize for name, (dtype, shape) in entries.items()}
        for name in sorted(entries, key=lambda name: (sizes[name] % PAGE > 0, -entries[name][0].itemsize)):
            dtype, shape = entries[name]
            starts[name], end = end, end + sizes[name]
            fields[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [starts[name], end]}
        text = json.dumps(fields, separators=(",", ":")).encode("utf-8")
        text += b" " * (-(len(text) + 8) % PAGE)
        header = len(text).to_bytes(8, "little") + text
        return cls(header, {name: len(header) + start for name, start in starts.items()}, end)


def write_tensors(
    file: Path,
    entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    read: Callable[[str], Shaped[Tensor, "*shape"]],
) -> int:
    """Write a safetensors file.

    Args:
        file: where; what is there is replaced.
        entries: type and shape of each tensor, by name; wider types are written first, so that all stay aligned.
        read: gives a tensor when its turn comes.

    Returns:
        The size of the tensors, in bytes.

    Raises:
        MidblockError: the disk is full or the place cannot be written.
        ValueError: `read` gave another type or shape than was said.
    """
    layout = FileLayout.of(entries)
    try:
        with file.open("wb") as stream:
            stream.write(layout.header)
            for name in layout.starts:
                tensor = read(name)
                if (tensor.dtype, tuple(tensor.shape)) != entries[name]:
                    raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not {entries[name]}")
                if tensor.numel():
                    stream.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    except OSError as error:
        raise write_failure(file, error) from error
    return layout.size
