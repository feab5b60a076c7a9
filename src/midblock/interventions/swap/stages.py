"""Stages of a swap block by block: what enters the block that is run, and what has left it so far.

Each stage is a store of its own. Every half minute one is put on disk whole, and the one before it is removed: there a
stopped swap goes on, with what had left that block by then. What enters block 0 is not kept: embeddings give it anew.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from midblock.base.files import write_failure
from midblock.base.seal import fingerprint
from midblock.trace.pieces import SAVE_SECONDS
from midblock.trace.tensor_store import TensorStore

NAME, GONE = "entering", "gone"  # and the number of a block: what a stage's folder is called, and one to be removed


@dataclass(eq=False)
class Stages:
    """Two stores of states, one on each side of a block.

    Attributes:
        batches: how many go through each block, a step of a store each.
        limit: bytes that both may hold in memory.
        folder: where a stopped swap goes on from; None for nowhere.
        owner: fingerprint of the run.
        seconds: least time between two stages on disk.
        block: the one that is run.
        done: batches that are through it.
        notes: what a reader must know of pieces that were dropped.
    """

    batches: int
    limit: int
    folder: Path | None = None
    owner: str = ""
    seconds: float = SAVE_SECONDS
    block: int = 0
    done: int = 0
    notes: list[str] = field(default_factory=list)
    _whole: int = 0  # the stage that a stopped swap goes on from
    _saved: float = field(default_factory=time.monotonic)

    def __enter__(self) -> Stages:
        """Go to the block that an earlier process had reached.

        Raises:
            MidblockError: another run's states are there.
        """
        kept = {stage: self._store(stage) for stage in self._on_disk()}
        self.block = self._whole = max((each for each, store in kept.items() if store.done == self.batches), default=0)
        self._keep_only({self.block, self.block + 1})
        self.entering = kept[self.block] if self.block else self._store(0)
        self.leaving = kept[self.block + 1] if self.block + 1 in kept else self._store(self.block + 1)
        self.done = self.leaving.done
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for store in (self.entering, self.leaving):
            store.__exit__(kind, error, trace)

    def step(self, *, last: bool = False) -> None:
        """Another batch is through the block.

        Args:
            last: the swap is stopped here.
        """
        self.done += 1
        self.leaving.step(self.done, last=last and self._whole == self.block)

    def next_block(self) -> None:
        """All batches are through the block."""
        self.entering.__exit__(None, None, None)
        self.block, self.done = self.block + 1, 0
        if self.folder is not None and time.monotonic() - self._saved >= self.seconds:
            self.leaving.step(self.batches, last=True)
            self._saved = time.monotonic()
        if self.leaving.saved == self.batches:
            self._whole = self.block
        self._keep_only({self.block, self._whole})
        self.entering, self.leaving = self.leaving, self._store(self.block + 1)

    def _store(self, stage: int) -> TensorStore:
        place = self.folder / f"{NAME}{stage}" if self.folder and stage else None
        store = TensorStore(place, self.limit // 2, fingerprint(self.owner, stage), self.seconds)
        self.notes += store.resume()[1]
        return store

    def _on_disk(self) -> list[int]:
        found = [place for place in self.folder.glob(f"{NAME}*") if place.is_dir()] if self.folder else []
        names = [place.name.removeprefix(NAME) for place in found]
        return [int(name) for name in names if name.isdecimal() and name == str(int(name))]

    def _keep_only(self, stages: Collection[int]) -> None:
        if self.folder is None:
            return
        try:
            for stage in set(self._on_disk()).difference(stages):
                # under another name first: what is removed by half would be taken for a damaged stage
                place = self.folder / f"{NAME}{stage}"
                place.rename(place.with_name(f"{GONE}{stage}"))
            for place in self.folder.glob(f"{GONE}*"):
                shutil.rmtree(place)
        except OSError as error:
            raise write_failure(self.folder, error) from error
