"""A checkpoint's tensors, one at a time, in the order they lie on disk; no model is built."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch
from jaxtyping import Shaped
from torch import Tensor

from midblock.base import MidblockError, unknown
from midblock.checkpoints.pickled_file import PickledFile
from midblock.checkpoints.safetensors_file import SafetensorsFile
from midblock.checkpoints.weight_files import WeightFiles, find_weight_files


class TensorReader:
    """Lazy access to the tensors of one file or of a folder, sharded or not.

    Every file is opened once, when the reader is made; `close` (or leaving the `with`) lets go of them all.

    Attributes:
        names: every tensor's name, in on-disk order, shard after shard.
    """

    names: tuple[str, ...]

    def __init__(self, weights: WeightFiles) -> None:
        opened = [PickledFile(path) if weights.pickled else SafetensorsFile(path) for path in weights.files]
        self._files = {file.path.name: file for file in opened}
        _check_index(weights, self._files)
        self._home: dict[str, SafetensorsFile | PickledFile] = {}
        copies: list[tuple[str, SafetensorsFile | PickledFile]] = []
        for file in opened:
            for name in file.entries:
                if name in self._home or weights.index.get(name, file.path.name) != file.path.name:
                    copies.append((name, file))
                else:
                    self._home[name] = file
        for name, file in copies:
            self._check_copy(name, file)
        self.names = tuple(self._home)
        self._last: str | None = None

    @classmethod
    def open(cls, place: Path | str, *, allow_pickle: bool = False) -> TensorReader:
        """Open the weights at `place`, a folder or a single file.

        Raises:
            MidblockError: no weights there, pickled ones without `allow_pickle`, a missing, truncated or corrupt shard
                (named), a tensor that the index promises and its shard lacks, or one that two shards have otherwise.
        """
        return cls(find_weight_files(Path(place), allow_pickle=allow_pickle))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file_of(name).entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._file_of(name).entries[name].dtype

    def nbytes(self, name: str) -> int:
        return self._file_of(name).entries[name].nbytes

    def file(self, name: str) -> Path:
        """The file that holds the tensor."""
        return self._file_of(name).path

    def read(self, name: str) -> Shaped[Tensor, "*shape"]:
        """Return one tensor, a view of the mapped file where its format allows: no copy, and not to be written to.

        The view stays valid as long as it is referenced, also after `close`. Reading the next tensor gives the pages of
        this one back to the system: using it later is right, only slower, so a loop holds one tensor in memory.
        """
        file = self._file_of(name)
        if self._last is not None and self._last != name:
            self.release(self._last)
        self._last = name
        return file.read(name)

    def release(self, name: str) -> None:
        """Give the pages of a tensor back to the system now."""
        self._file_of(name).release(name)

    def items(self) -> Iterator[tuple[str, Shaped[Tensor, "*shape"]]]:
        """Read every tensor, in on-disk order."""
        for name in self.names:
            yield name, self.read(name)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _check_copy(self, name: str, file: SafetensorsFile | PickledFile) -> None:
        """transformers loads every tensor of every shard: of two of one name, whichever comes last."""
        home = self._home[name]
        same = same_bits(home.read(name), file.read(name))
        for each in (home, file):
            each.release(name)
        if not same:
            what = f"{name} lies in {home.path} and, with other values, in {file.path}"
            raise MidblockError(what, hint="one of the shards is of another model: fetch them all again")

    def _file_of(self, name: str) -> SafetensorsFile | PickledFile:
        if name not in self._home:
            raise unknown("tensor", name, self.names)
        return self._home[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._home

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def same_bits(first: Shaped[Tensor, "..."], second: Shaped[Tensor, "..."]) -> bool:
    """Whether two tensors have the same shape, and each entry the same bits; of two types, the same value."""
    if first.shape != second.shape:
        return False
    if first.dtype != second.dtype:
        return torch.equal(first.double(), second.double())
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(first.dtype.itemsize)
    return torch.equal(first, second) if kind is None else torch.equal(first.view(kind), second.view(kind))


def content_hash(reader: TensorReader) -> str:
    """Hash names, types, shapes and bytes of all tensors (SHA-256, hexadecimal).

    It does not depend on how the tensors are spread over files or on the files' metadata: the same weights resharded
    hash the same.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        digests = dict(zip(reader.names, pool.map(lambda name: _digest(reader, name), reader.names), strict=True))
    whole = hashlib.sha256()
    for name in sorted(digests):
        whole.update(f"{name}\0{reader.dtype(name)}\0{list(reader.shape(name))}\0{digests[name]}\n".encode())
    return whole.hexdigest()


def _digest(reader: TensorReader, name: str) -> str:
    content = reader.read(name).reshape(-1).view(torch.uint8).numpy().data
    digest = hashlib.sha256(content).hexdigest()
    reader.release(name)
    return digest


def _check_index(weights: WeightFiles, files: dict[str, SafetensorsFile | PickledFile]) -> None:
    for name, shard in weights.index.items():
        if name not in files[shard].entries:
            path = files[shard].path
            raise MidblockError(f"{path} lacks the tensor {name}, which the index says it holds", hint="fetch it again")
