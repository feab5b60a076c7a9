"""The weights of a merge, streamed into files: a tensor at a time, its pieces computed and written by all threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from jaxtyping import Shaped
from torch import Tensor

from midblock.base import MidblockError, write_json
from midblock.base.files import write_failure
from midblock.checkpoints.tensor_writer import Layout
from midblock.checkpoints.weight_files import INDEX, SINGLE
from midblock.interventions.alphas import Alphas
from midblock.interventions.blend import Source, blend, pieces
from midblock.interventions.merge_plan import Item, plan_files
from midblock.interventions.parents import Parent
from midblock.metrics.spectra import single_threaded_workers

WORKERS = os.cpu_count() or 1
COPIED = 1 << 22  # bytes copied at a time


@dataclass(frozen=True)
class Weights:
    """All tensors of a merge, file by file.

    Attributes:
        base, tuned: the parents.
        files: for each file of the base, the tensors that go into its counterpart.
    """

    base: Parent
    tuned: Parent
    files: tuple[tuple[Item, ...], ...]

    @classmethod
    def plan(cls, base: Parent, tuned: Parent, alphas: Alphas, dtype: torch.dtype | None) -> Weights:
        """Decide for every tensor of the base what becomes of it.

        Args:
            dtype: of every floating-point tensor written; None for the base's own.

        Raises:
            MidblockError: tensors that one parent lacks or has in another shape, and quantised ones that differ.
        """
        return cls(base, tuned, tuple(tuple(items) for items in plan_files(base, tuned, alphas, dtype)))

    def __iter__(self) -> Iterator[Item]:
        return (item for items in self.files for item in items)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(item.count * item.dtype.itemsize for item in self)

    def write(self, folder: Path, advance: Callable[[float], None]) -> None:
        """Write the files, and an index where there are several.

        Args:
            advance: hears how many bytes were written since its last call.

        Raises:
            MidblockError: the disk is full, a parent holds NaN or Inf where it is computed with, or a result is too
                large for its type.
        """
        count = len(self.files)
        index: dict[str, str] = {}
        for number, items in enumerate(self.files, start=1):
            file = SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            self._write_file(folder / file, items, advance)
            index |= {item.name: file for item in items}
        if count > 1:
            write_json(
                folder / INDEX, {"metadata": {"total_size": self.size}, "weight_map": dict(sorted(index.items()))}
            )

    def _write_file(self, file: Path, items: Sequence[Item], advance: Callable[[float], None]) -> None:
        layout = Layout.of({item.name: (item.dtype, item.shape) for item in items})
        by_name = {item.name: item for item in items}
        try:
            with file.open("wb", buffering=0) as stream:
                write = _Writer(stream)
                write(layout.header, 0)
                for name, start in layout.starts.items():
                    self._write_tensor(by_name[name], partial(write, start=start))
                    advance(by_name[name].count * by_name[name].dtype.itemsize)
        except OSError as error:
            raise write_failure(file, error) from error

    def _write_tensor(self, item: Item, write: Callable[..., None]) -> None:
        """Share a tensor out over the workers, piece by piece; each writes its own to its place in the file."""
        workers = single_threaded_workers(WORKERS)
        if item.kind != "blend":
            content = _bytes(self._copied(item).stored)
            spans = range(0, len(content), COPIED)
            list(workers.map(lambda first: write(content[first : first + COPIED], offset=first), spans))
            return
        base, tuned = self.base.source(item.name), self.tuned.source(str(item.tuned_name))

        def one(span: tuple[int, int]) -> None:
            made = blend(base, tuned, item.alpha, *span, item.dtype)
            self._check(item, base, tuned, span, made)
            write(_bytes(made), offset=span[0] * item.dtype.itemsize)

        list(workers.map(one, pieces(base, tuned)))

    def _copied(self, item: Item) -> Source:
        return self.base.source(item.name) if item.kind == "base" else self.tuned.source(str(item.tuned_name))

    def _check(
        self, item: Item, base: Source, tuned: Source, span: tuple[int, int], made: Shaped[Tensor, " n"]
    ) -> None:
        low, high = made.aminmax()
        if bool(low > -torch.inf) and bool(high < torch.inf):  # false for NaN too
            return
        for parent, source in ((self.base, base), (self.tuned, tuned)):
            if not bool(torch.isfinite(source.flat[slice(*span)]).all()):
                raise MidblockError(f"NaN or Inf in the weight {item.name} of {parent.name}")
        raise MidblockError(f"{item.name} has entries too large for {item.dtype}", hint="--dtype bfloat16 or float32")


class _Writer:
    """Writes at any place of a file, from any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.lock = threading.Lock()

    def __call__(self, content: bytes | memoryview, start: int, offset: int = 0) -> None:
        position, rest = start + offset, memoryview(content)
        while rest:
            written = self._write(rest, position)
            position, rest = position + written, rest[written:]

    def _write(self, content: memoryview, position: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self.stream.fileno(), content, position)
        with self.lock:  # Windows
            self.stream.seek(position)
            return self.stream.write(content)


def _bytes(tensor: Shaped[Tensor, "*shape"]) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
