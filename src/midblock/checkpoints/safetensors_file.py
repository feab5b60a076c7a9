"""One safetensors file: its header checked against its length, its tensors as views of the mapped file.

Reading costs no copy. `safe_open` is as fast, but it never gives pages back, and mapped pages count as resident memory:
two models compared tensor by tensor would end up wholly resident. Here `release` returns a tensor's pages, so that peak
memory stays at a few tensors.
"""

from __future__ import annotations

import math
import mmap
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from midblock.base import MidblockError
from midblock.base.json_file import parse_object, shown
from midblock.base.plain_file import check_plain_file, unreadable

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
LONGEST_NAME = 500  # letters
LARGEST_SIZE = 2**63  # of a side or a place in the file
NORESERVE = 0x4000  # which Python 3.13 calls mmap.MAP_NORESERVE
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
        check_plain_file(path)
        try:
            with path.open("rb") as stream:
                self._map = _mapped(stream.fileno())
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            raise unreadable(path, error) from error
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


def _mapped(file: int) -> mmap.mmap:
    """Map a file, copy on write: torch takes the buffer without a warning, and nothing ever reaches the file."""
    if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64"):
        # else the system reserves memory for all that might be written, and refuses a file larger than it has
        return mmap.mmap(file, 0, mmap.MAP_PRIVATE | NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE)
    return mmap.mmap(file, 0, access=mmap.ACCESS_COPY)


def _parse_header(path: Path, content: mmap.mmap) -> dict[str, Entry]:
    if content[: len(LFS_POINTER)] == LFS_POINTER:
        raise MidblockError(f"{path} is a git-lfs pointer, not the weights", hint="run `git lfs pull` in its folder")
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > LONGEST_HEADER:
        raise MidblockError(f"{path} is corrupt: its header would be {length} bytes long", hint="fetch it again")
    if 8 + length > len(content):
        raise _truncated(path, 8 + length, len(content))
    header = parse_object(content[8 : 8 + length], f"{path} is corrupt: its header")
    _check_metadata(path, header.pop("__metadata__", None))
    entries = {name: _entry(path, name, fields, 8 + length) for name, fields in header.items()}
    _check_extent(path, entries, 8 + length, len(content))
    in_order = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop, item[0])))
    _check_gapless(path, in_order, 8 + length)
    return in_order


def _check_metadata(path: Path, found: Any) -> None:
    """Words and nothing else, as every reader of the format wants them."""
    if found is None or (isinstance(found, dict) and all(isinstance(value, str) for value in found.values())):
        return
    raise MidblockError(f"{path} is corrupt: its header's metadata is no table of words", hint="fetch it again")


def _entry(path: Path, name: str, fields: Any, base: int) -> Entry:
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise MidblockError(f"{path} is corrupt: {shown(name)} is no name of a tensor", hint="fetch it again")
    fields = fields if isinstance(fields, dict) else {}
    kind, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(kind, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        what = f"{path} is corrupt: its header does not say type, shape and place of tensor {shown(name)}"
        raise MidblockError(what, hint="fetch it again")
    if kind not in DTYPES:
        raise MidblockError(f"{path}: tensor {shown(name)} has the type {shown(kind)}, which midblock cannot read")
    start, stop = offsets
    if stop - start != math.prod(shape) * DTYPES[kind].itemsize:
        raise MidblockError(f"{path} is corrupt: tensor {shown(name)} of shape {shown(shape)} has {stop - start} bytes")
    return Entry(DTYPES[kind], tuple(shape), base + start, base + stop)


def _are_sizes(found: Any) -> bool:
    return isinstance(found, list) and all(type(size) is int and 0 <= size < LARGEST_SIZE for size in found)


def _check_extent(path: Path, entries: Mapping[str, Entry], begin: int, size: int) -> None:
    end = max((entry.stop for entry in entries.values()), default=begin)
    if end > size:
        raise _truncated(path, end, size)
    if end < size:
        raise MidblockError(f"{path} is corrupt: {size - end} bytes follow its last tensor", hint="fetch it again")


def _check_gapless(path: Path, entries: Mapping[str, Entry], begin: int) -> None:
    """Every byte belongs to one tensor: other readers of the format refuse a file with holes or with bytes shared."""
    for name, entry in entries.items():
        if entry.start != begin:
            what = f"{path} is corrupt: tensor {shown(name)} does not begin where the one before it ends"
            raise MidblockError(what, hint="fetch it again")
        begin = entry.stop


def _truncated(path: Path, expected: int, found: int) -> MidblockError:
    what = f"{path} is truncated: it has {found} bytes, its header speaks of {expected}"
    return MidblockError(what, hint="the download or copy was cut off; fetch it again")
