"""One safetensors file: its header checked against its length, its tensors as views of the mapped file.

Reading costs no copy. `safe_open` is as fast, but it never gives pages back, and mapped pages count as resident memory:
two models compared tensor by tensor would end up wholly resident. Here `release` returns a tensor's pages, so that peak
memory stays at a few tensors.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from midblock.base import MidblockError

DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}

LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: bytes `start` to `stop` of its file (0, and its size, where that is not known)."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


class SafetensorsFile:
    """A safetensors file mapped into memory.

    Attributes:
        path: the file.
        entries: tensor name to place, in on-disk order.
    """

    def __init__(self, path: Path) -> None:
        """Map the file and check its header.

        Raises:
            MidblockError: when the file cannot be read, is truncated, or its header is broken; the message names it.
        """
        self.path = path
        try:
            with path.open("rb") as stream:
                # copy on write: torch takes the buffer without a warning, and nothing ever reaches the file
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            raise MidblockError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
        self.entries = _parse_header(path, self._map)
        self._bytes: Tensor | None = torch.frombuffer(self._map, dtype=torch.uint8)

    def read(self, name: str) -> Shaped[Tensor, "*shape"]:
        """Return the tensor as a view of the file; not to be written to (a write is lost, the file stays as it is)."""
        if self._bytes is None:
            raise ValueError(f"{self.path} is closed")
        entry = self.entries[name]
        flat = self._bytes[entry.start : entry.stop]
        if entry.start % entry.dtype.itemsize or not entry.nbytes:
            flat = flat.clone()
        return flat.view(entry.dtype).view(entry.shape)

    def release(self, name: str) -> None:
        """Give the tensor's pages back to the system; views stay valid and fetch them again when they are used."""
        if hasattr(mmap, "MADV_DONTNEED") and self._bytes is not None:
            entry = self.entries[name]
            start = entry.start // mmap.PAGESIZE * mmap.PAGESIZE
            if entry.nbytes:
                self._map.madvise(mmap.MADV_DONTNEED, start, entry.stop - start)

    def close(self) -> None:
        """Let go of the file; it stays mapped until the last view of it is gone."""
        self._bytes = None


def _parse_header(path: Path, content: mmap.mmap) -> dict[str, Entry]:
    if content[: len(LFS_POINTER)] == LFS_POINTER:
        raise MidblockError(f"{path} is a git-lfs pointer, not the weights", hint="run `git lfs pull` in its folder")
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > LONGEST_HEADER:
        raise MidblockError(f"{path} is corrupt: its header would be {length} bytes long", hint="fetch it again")
    if 8 + length > len(content):
        raise _truncated(path, 8 + length, len(content))
    try:
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        entries = {name: _entry(path, name, fields, 8 + length) for name, fields in header.items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise MidblockError(f"{path} is corrupt: its header cannot be read", hint="fetch it again") from error
    _check_extent(path, entries, 8 + length, len(content))
    return dict(sorted(entries.items(), key=lambda item: (item[1].start, item[0])))


def _entry(path: Path, name: str, fields: Mapping[str, Any], base: int) -> Entry:
    if fields["dtype"] not in DTYPES:
        raise MidblockError(f"{path}: tensor {name} has the type {fields['dtype']}, which midblock cannot read")
    dtype, shape = DTYPES[fields["dtype"]], tuple(int(size) for size in fields["shape"])
    start, stop = (base + int(offset) for offset in fields["data_offsets"])
    if stop - start != math.prod(shape) * dtype.itemsize or start < base:
        raise MidblockError(f"{path} is corrupt: tensor {name} of shape {list(shape)} has {stop - start} bytes")
    return Entry(dtype, shape, start, stop)


def _check_extent(path: Path, entries: Mapping[str, Entry], begin: int, size: int) -> None:
    end = max((entry.stop for entry in entries.values()), default=begin)
    if end > size:
        raise _truncated(path, end, size)
    if end < size:
        raise MidblockError(f"{path} is corrupt: {size - end} bytes follow its last tensor", hint="fetch it again")


def _truncated(path: Path, expected: int, found: int) -> MidblockError:
    what = f"{path} is truncated: it has {found} bytes, its header speaks of {expected}"
    return MidblockError(what, hint="the download or copy was cut off; fetch it again")
