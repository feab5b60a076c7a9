"""The weights of a merge, streamed into files: a tensor at a time, its pieces computed and written by all threads."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from jaxtyping import Shaped
from torch import Tensor

from midblock.base import MidblockError, write_json
from midblock.base.files import write_failure
from midblock.checkpoints import EffectiveTensors, Source, release_on_disk, value_on_disk, value_on_disk_like
from midblock.checkpoints.on_disk import Overlay, carried_on_disk_like
from midblock.checkpoints.tensor_writer import FileLayout
from midblock.checkpoints.weight_files import INDEX, SINGLE
from midblock.interventions.merge.alphas import Alphas
from midblock.interventions.merge.blend import blend, pieces, scratch
from midblock.interventions.merge.plan import Item, plan_files
from midblock.metrics.spectra import single_threaded_workers

WORKERS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
COPIED = 1 << 22  # bytes copied at a time
SAMPLED = 1 << 12  # entries of a tensor on which it is seen what rounding takes away

Work = tuple[list[Callable[[], int]], Callable[[], None]]


@dataclass(frozen=True)
class Weights:
    """All tensors of a merge, file by file.

    Attributes:
        base, tuned: the parents.
        files: for each file of the base, the tensors that go into its counterpart.
        losses: of each tensor that is computed and written in 16 bits, what share of its change rounding takes away, as
            its first entries tell; filled by `write`.
    """

    base: EffectiveTensors
    tuned: EffectiveTensors
    files: tuple[tuple[Item, ...], ...]
    losses: list[float] = field(default_factory=list)

    @classmethod
    def plan(
        cls, base: EffectiveTensors, tuned: EffectiveTensors, alphas: Alphas, dtype: torch.dtype | None
    ) -> Weights:
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
        layout = FileLayout.of({item.name: (item.dtype, item.shape) for item in items})
        by_name = {item.name: item for item in items}
        try:
            with file.open("wb", buffering=0) as stream:
                _reserve(stream, layout.end)
                write = _Writer(stream)
                write(layout.header, 0)
                works = (self._work(by_name[name], partial(write, start=at)) for name, at in layout.starts.items())
                for written in _shared_out(works):
                    advance(written)
        except OSError as error:
            raise write_failure(file, error) from error

    def _work(self, item: Item, write: Callable[..., None]) -> Work:
        """A tensor's pieces, and what lets go of its parents' memory behind the last."""

        def release() -> None:
            release_on_disk(self.base, self.base, item.name)
            if item.paired:
                release_on_disk(self.tuned, self.base, item.name)

        return list(self._pieces(item, write)), release

    def _pieces(self, item: Item, write: Callable[..., None]) -> Iterator[Callable[[], int]]:
        """The work on a tensor, piece by piece; each writes its own to its place in the file and tells how much."""
        overlay = carried_on_disk_like(self.tuned, self.base, item.name) if item.kind == "tuned" else None
        if overlay is not None:
            height, width = overlay.rows.shape
            step = max(1, COPIED // max(1, width * item.dtype.itemsize))
            for first in range(0, height, step):
                yield partial(_overlay, overlay, first, min(first + step, height), item.dtype, write)
            return
        if item.kind != "blend":
            content = _bytes(self._copied(item).stored.to(item.dtype))
            for first in range(0, len(content), COPIED):
                yield partial(_copy, content[first : first + COPIED], first, write)
            return
        base, tuned = value_on_disk(self.base, item.name), value_on_disk_like(self.tuned, self.base, item.name)
        for span in pieces(base, tuned):
            yield partial(self._blend, item, base, tuned, span, write)

    def _blend(self, item: Item, base: Source, tuned: Source, span: tuple[int, int], write: Callable[..., None]) -> int:
        made = blend(base, tuned, item.alpha, *span, item.dtype)
        self._check(item, base, tuned, span, made)
        if span[0] == 0 and item.dtype.itemsize < 4:
            self._sample(item, base, tuned, made)
        write(_bytes(made), offset=span[0] * item.dtype.itemsize)
        return made.nbytes

    def _sample(self, item: Item, base: Source, tuned: Source, made: Shaped[Tensor, " n"]) -> None:
        width = base.stored.shape[-1] if base.stored.ndim else 1  # what is changed comes in whole rows
        before, after = torch.empty(2, min(max(1, SAMPLED // width) * width, len(made)), dtype=torch.float64)
        base.fill(before, 0)
        tuned.fill(after, 0)
        wanted = item.alpha * (after - before)
        if (size := float(wanted.norm())) > 0:
            self.losses.append(float((made[: len(before)].double() - before - wanted).norm()) / size)

    def _copied(self, item: Item) -> Source:
        if item.kind == "base":
            return value_on_disk(self.base, item.name)
        if item.kind == "added":
            return value_on_disk(self.tuned, item.name)
        return value_on_disk_like(self.tuned, self.base, item.name)

    def _check(
        self, item: Item, base: Source, tuned: Source, span: tuple[int, int], made: Shaped[Tensor, " n"]
    ) -> None:
        # a sum is finite only if all its terms are, and is much cheaper than a test of each
        if math.isfinite(float(made.sum())) or bool(torch.isfinite(made).all()):
            return
        for parent, source in ((self.base, base), (self.tuned, tuned)):
            values = torch.empty(span[1] - span[0], dtype=torch.float64)
            source.fill(values, span[0])
            if not bool(torch.isfinite(values).all()):
                raise MidblockError(f"NaN or Inf in the weight {item.name} of {parent.name}")
        raise MidblockError(f"{item.name} has entries too large for {item.dtype}", hint="--dtype bfloat16 or float32")


def _overlay(overlay: Overlay, first: int, last: int, dtype: torch.dtype, write: Callable[..., None]) -> int:
    width = overlay.rows.shape[1]
    made = scratch((last - first) * width, dtype).view(-1, width)
    overlay.fill(made, first)
    write(_bytes(made), offset=first * width * dtype.itemsize)
    return made.nbytes


def _copy(content: memoryview, offset: int, write: Callable[..., None]) -> int:
    write(content, offset=offset)
    return len(content)


def _shared_out(works: Iterable[Work]) -> Iterator[int]:
    """Do the pieces of one tensor after the other on all workers, a few ahead: nobody waits for a tensor's last piece.

    More than a few would keep tensors in memory that are done with.

    Yields:
        The bytes written by each piece, in order.
    """
    workers = single_threaded_workers(WORKERS)
    under_way: deque[tuple[Future[int], Callable[[], None]]] = deque()

    def oldest() -> int:
        future, finish = under_way.popleft()
        written = future.result()
        finish()
        return written

    try:
        for pieces_of_one, release in works:
            for left, piece in zip(reversed(range(len(pieces_of_one))), pieces_of_one, strict=True):
                under_way.append((workers.submit(piece), _nothing if left else release))
                if len(under_way) > 2 * WORKERS:
                    yield oldest()
        while under_way:
            yield oldest()
    finally:
        for future, _ in under_way:
            future.cancel()
        wait([future for future, _ in under_way])  # nobody may still write when the file is closed


def _nothing() -> None:
    pass


def _reserve(stream: BinaryIO, size: int) -> None:
    """Take the disk's space in one go: a disk that is too full says so now, and writing is a third faster."""
    if hasattr(os, "posix_fallocate") and size:
        os.posix_fallocate(stream.fileno(), 0, size)


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
