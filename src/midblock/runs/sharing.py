"""One run shared out over the processes that `torchrun` started: each does a share, all hold what any of them found.

Behind the steps everything is the same in every process, so nothing else has to know of the others; the main one alone
writes. What one process cannot go on with ends all of them, with its line. Cost: what was found is sent to every
process once. Source: torch.distributed, over gloo. Described in docs/processes.md.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor

from midblock.base import MidblockError
from midblock.base.errors import ToldError
from midblock.runs.processes import rank, world_size
from midblock.runs.stopping import STOPPING, Stopped

R = TypeVar("R")
T = TypeVar("T")

PATIENCE = timedelta(days=7)  # one that dies is noticed by its closed connection, however long others take
GLANCE = 0.005  # seconds between two looks whether the others have come
LOST = "another process of this run ended before it was done"


@dataclass(frozen=True)
class Sharing:
    """The processes of one run.

    Attributes:
        rank: which of them this is; 0 is the main one.
        count: how many there are.
        group: of torch.distributed, for tensors on the CPU; None for one process.
        store: that all of them see; None for one process, or where somebody else joined them.
        key: under which one that ends says so there.
    """

    rank: int = 0
    count: int = 1
    group: Any = None
    store: Any = None
    key: str = ""

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, steps: Sequence[T]) -> Sequence[T]:
        """This process's share: every `count`-th, since neighbours cost about the same."""
        return steps[self.rank :: self.count]

    def check_others(self) -> None:
        """Behind a step: stop where another process was stopped, or could not go on.

        Raises:
            ToldError: it could not go on; its own line says why.
        """
        if self.store is None or not self.store.check([self.key]):
            return
        if self.store.get(self.key) == b"stopped":
            STOPPING.stop()
        raise ToldError("another process of this run met an error")

    def agreed(self, work: Callable[..., R], *given: Any) -> R:
        """What this process's work gives, once all are through with theirs.

        Raises:
            MidblockError: any process's; in the others it is a `ToldError`, which the main one tells of.
        """
        if self.group is None:
            return work(*given)
        with self._heard():
            try:
                result, told = work(*given), None
            except MidblockError as error:
                self._tell("error")
                result, told = None, error
            self._exchange(told)
        return result  # type: ignore[return-value]

    def all_texts(self, text: str) -> list[str]:
        """A text of each process."""
        return [text] if self.group is None else [each.decode() for each in self._exchange(None, text.encode())]

    def all_tensors(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Named tensors of each process but this one; it may have other names."""
        if self.group is None:
            return []
        flat = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        found = self._exchange(None, save(flat) if flat else b"")
        return [load(each) if each else {} for place, each in enumerate(found) if place != self.rank]

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Let the others know that this process is being stopped, so that they do not wait for it."""
        try:
            yield
        except (Stopped, KeyboardInterrupt):
            self._tell("stopped")
            raise

    def _tell(self, what: str) -> None:
        if self.store is not None:
            with suppress(RuntimeError):  # whoever kept it is gone
                self.store.set(self.key, what)

    def _exchange(self, error: MidblockError | None, content: bytes = b"") -> list[bytes]:
        """What each process has to say, in order of ranks.

        Raises:
            MidblockError: one of them says an error.
        """
        said = json.dumps(None if error is None else [error.what, error.hint, isinstance(error, ToldError)]).encode()
        everything = [each.split(b"\n", 1) for each in self._gathered(said + b"\n" + content)]
        errors = [json.loads(head) for head, _ in everything]
        own = [each for each in errors if each is not None and not each[2]] or [each for each in errors if each]
        if not own:
            return [rest for _, rest in everything]
        if self.main and error is not None and not isinstance(error, ToldError):
            raise error
        what, hint, _ = own[0]
        raise (MidblockError if self.main else ToldError)(what, hint=hint) from error

    def _gathered(self, content: bytes) -> list[bytes]:
        counts = [torch.zeros(1, dtype=torch.long) for _ in range(self.count)]
        self._gather(counts, torch.tensor([len(content)]))
        sizes = [int(each) for each in counts]
        padded = torch.frombuffer(bytearray(content.ljust(max(sizes), b"\0")), dtype=torch.uint8)
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        self._gather(parts, padded)
        return [part[:size].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]

    def _gather(self, into: list[Tensor], own: Tensor) -> None:
        """All processes' tensors; a signal is heeded while it waits for them."""
        try:
            under_way = torch.distributed.all_gather(into, own, group=self.group, async_op=True)
            while not under_way.is_completed():
                time.sleep(GLANCE)
                if STOPPING.due():
                    STOPPING.stop()
            under_way.wait()
        except RuntimeError as error:
            if STOPPING.due():
                STOPPING.stop()
            raise MidblockError(LOST, hint="--resume goes on from here") from error


ALONE = Sharing()
_SHARED = [ALONE]  # of runs within runs the innermost counts


def shared() -> Sharing:
    """The processes that this run is shared out over; by itself one."""
    return _SHARED[-1]


@contextmanager
def sharing() -> Iterator[Sharing]:
    """Inside, a run is shared out over all processes that were started together.

    A run within a run that is the main process's alone is so, too.
    """
    if world_size() == 1 or len(_SHARED) > 1:
        yield shared()
        return
    with _within(_together(next(_RUNS))) as among:
        yield among


@contextmanager
def alone() -> Iterator[Sharing]:
    """Inside, a run is this process's own, whatever others do."""
    with _within(ALONE) as among:
        yield among


@contextmanager
def _within(among: Sharing) -> Iterator[Sharing]:
    _SHARED.append(among)
    try:
        yield among
    finally:
        _SHARED.pop()


_RUNS = itertools.count()


def _together(number: int) -> Sharing:
    """All processes, in the run of this number."""
    group, store = _joined()
    return Sharing(
        rank(), world_size(), group, store, f"midblock_ended_{os.environ.get('TORCHELASTIC_RESTART_COUNT')}_{number}"
    )


@cache
def _joined() -> tuple[Any, Any]:
    """The group, made once; where somebody joined the processes before, one beside theirs, without a store."""
    distributed = torch.distributed
    if distributed.is_initialized():
        return distributed.new_group(backend="gloo", timeout=PATIENCE), None
    store, *_ = next(iter(distributed.rendezvous("env://", timeout=PATIENCE)))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"  # for a training that comes later
    distributed.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=PATIENCE)
    return distributed.group.WORLD, store


def shared_rows(work: Callable[[], Sequence[Any]]) -> list[Any]:
    """What each process's share of some work gives, plain values, of all processes one after the other.

    Raises:
        MidblockError: any process's.
    """
    own = shared().agreed(work)
    if shared().group is None:
        return list(own)
    return [row for text in shared().all_texts(json.dumps(list(own))) for row in json.loads(text)]
