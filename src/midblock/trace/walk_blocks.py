"""The walk block by block: see `walk`. One block at a time is in memory, the next is read meanwhile.

Numbered by the passes through each block, so that a walk that was stopped goes on at the block, and the batch, that it
had reached: what it had found lies in a `TensorStore`. What blocks write into for blocks above does not, and where
there is such a thing the walk through that model begins again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.checkpoints.blockwise import BlockwiseModel
from midblock.trace.calls import BlockCalls, Held
from midblock.trace.held_states import HeldStates
from midblock.trace.outline import TRIED, Outline, Shared
from midblock.trace.stream import reduce_states
from midblock.trace.tensor_store import KeptRows, KeptStates, TensorStore
from midblock.trace.walk import Asked, Pass, Passed, Rows, Work, failing, next_asked, reduce_held, run_alone

Behind = Callable[[Pass, int], None]


@dataclass(eq=False)
class WalkBlocks:
    """All works together.

    Attributes:
        models: by name.
        kept: states and rows.
        keep: given what the works find.
        behind: told of each pass through a block that is behind.
        due: asked behind each such pass whether to stop.
        notes: what a reader must know of pieces that were dropped.
    """

    models: Mapping[str, BlockwiseModel]
    kept: TensorStore
    keep: Callable[[Any], None]
    behind: Behind = lambda wanted, block: None
    due: Callable[[], bool] = lambda: False
    notes: list[str] = field(default_factory=list)
    _resumed: int = 0
    _number: int = 0
    _walks: int = 0
    _outlines: dict[str, Outline] = field(default_factory=dict)
    _shared: Shared = field(default_factory=Shared)

    def run(self, works: Sequence[Work]) -> bool:
        """Do the works.

        Returns:
            Whether they were done; False where it was due to stop, and all is saved.

        Raises:
            MidblockError: whatever a pass raises, or what another run kept.
        """
        self._resumed, self.notes = self.kept.resume()
        waiting = {number: next_asked(work, None, self.keep) for number, work in enumerate(works)}
        while asked := {number: each for number, each in waiting.items() if each is not None and each.passes}:
            answers = self._round(asked)
            if answers is None:
                return False
            for number, answer in answers.items():
                waiting[number] = next_asked(works[number], answer, self.keep)
        with ExitStack() as heads:
            for name in self.models if any(each is not None for each in waiting.values()) else ():
                heads.enter_context(self.models[name].loaded("around", "final_norm", "head"))
            for number in [number for number, each in waiting.items() if each is not None]:
                if next_asked(works[number], None, self.keep) is not None:
                    raise MidblockError("a pass was asked for behind the heads")
        return True

    def _round(self, asked: Mapping[int, Asked]) -> dict[int, list[Passed]] | None:
        """One answer for each work that asks; a walk for each model. None where it was due to stop."""
        names = dict.fromkeys(each.model for ask in asked.values() for each in ask.passes)
        found: dict[tuple[int, int], Passed] = {}
        for name in names:
            wanted = {
                (number, place): each
                for number, ask in asked.items()
                for place, each in enumerate(ask.passes)
                if each.model == name
            }
            walk = _Walk(self, self.models[name], self._outline(name, next(iter(wanted.values()))), self._walks, wanted)
            self._walks += 1
            if not walk.run():
                return None
            if self._number > self._resumed:
                self.kept.step(self._number, last=True)
            for key in wanted:
                before = [found[key[0], place] for place in range(key[1])]
                found[key] = walk.passed(key, before)
        return {number: [found[number, place] for place in range(len(ask.passes))] for number, ask in asked.items()}

    def _outline(self, name: str, wanted: Pass) -> Outline:
        if name not in self._outlines:
            with Outline.tried(self.models[name], wanted.batch.start(TRIED).input_ids) as found:
                self._outlines[name] = found
        return self._outlines[name]

    def count(self) -> bool:
        """Whether the next numbered pass through a block is still to be done."""
        self._number += 1
        return self._number > self._resumed

    def told(self, wanted: Pass, block: int) -> bool:
        """A numbered pass through a block is behind; whether to go on."""
        self.behind(wanted, block)
        if self._number <= self._resumed:
            return True
        stop = self.due()
        self.kept.step(self._number, last=stop)
        return not stop


Key = tuple[int, int]


@dataclass(eq=False)
class _Walk:
    """One model, block by block, for all passes through it."""

    whole: WalkBlocks
    model: BlockwiseModel
    outline: Outline
    number: int
    wanted: Mapping[Key, Pass]
    _calls: dict[Key, BlockCalls] = field(default_factory=dict)
    _held: dict[Key, Held] = field(default_factory=dict)

    @property
    def anatomy(self) -> Anatomy:
        return self.model.anatomy

    @cached_property
    def top(self) -> int:
        """L."""
        return len(self.anatomy)

    @property
    def kept(self) -> TensorStore:
        return self.whole.kept

    def run(self) -> bool:
        """Every pass through every block; False where it was due to stop."""
        first, total = self.whole._number, len(self.wanted) * self.top
        left = first + total > self.whole._resumed
        # what blocks write into is not kept: such a walk begins again, and what it did is done once more
        if left and self.outline.hands_on:
            self.whole._resumed = min(self.whole._resumed, first)
        if left or any(each.calls for each in self.wanted.values()):
            self._record(fresh=self.whole._resumed <= first)
        for block in range(self.top):
            if self.whole._number + len(self.wanted) <= self.whole._resumed:
                self._skip(block)
            elif not self._through(block):
                return False
        return True

    def _skip(self, block: int) -> None:
        for each in self.wanted.values():
            self.whole.count()
            self.whole.told(each, block)

    def _record(self, *, fresh: bool) -> None:
        """How blocks are called for each pass and, of a walk that begins, what enters the first."""
        with self.model.loaded("embedding", "around", "final_norm", then=0):
            for key, wanted in self.wanted.items():
                if not wanted.runs:
                    continue
                with failing(wanted) as told, wanted.around():
                    calls = self.whole._shared.of(self.outline.record(wanted.batch.input_ids))
                    entering = calls.entering.pop(0)
                    self._calls[key], self._held[key] = calls, Held()
                    if fresh:
                        self._seen(key, wanted, -1, entering)
                self._told(key, told)

    def _through(self, block: int) -> bool:
        last = block == self.top - 1
        parts = (block, "final_norm") if last else (block,)
        with self.model.loaded(*parts, then=None if last else block + 1):
            for key, wanted in self.wanted.items():
                if self.whole.count():
                    with failing(wanted) as told, wanted.around():
                        self._one(key, wanted, block)
                    self._told(key, told)
                if not self.whole.told(wanted, block):
                    return False
        return True

    def _one(self, key: Key, wanted: Pass, block: int) -> None:
        """One pass through one block."""
        if wanted.runs and self._name(key, "failed") not in self.kept:
            # a block may write over what it is given
            states = self._now(key, wanted, block - 1).to(self.model.device, copy=True)
            blocks = list(self.anatomy.blocks)
            with wanted.watching(partial(self._note, key)):
                states = self._calls[key].run(blocks, states, block, block + 1, self._held[key])
            self._seen(key, wanted, block, states)
            if block == self.top - 1:
                with torch.inference_mode():
                    self._seen(key, wanted, self.top, self.anatomy.final_norm(states))
        if wanted.alone is not None and block in wanted.alone.blocks:
            self._put_rows(key, run_alone(self.anatomy, wanted, wanted.alone, block))

    def _now(self, key: Key, wanted: Pass, layer: int) -> Tensor:
        return self.kept.get(self._name(key, "held", layer) if self._holds(wanted) else self._name(key, "now"))

    def _holds(self, wanted: Pass) -> bool:
        """Whether states of all layers are kept: asked for, or wanted once its reductions are known."""
        return wanted.hold or callable(wanted.reductions)

    def _seen(self, key: Key, wanted: Pass, layer: int, states: Tensor) -> None:
        """What left a layer: kept as long as it is needed, and reduced."""
        if self._holds(wanted):
            self.kept.put(self._name(key, "held", layer), states)
            return
        if layer < self.top:
            self.kept.put(self._name(key, "now"), states)
        if layer in wanted.layers:
            given = (wanted.called, layer, states, wanted.batch, wanted.mask, wanted.reducing(()))
            self._put_rows(key, reduce_states(*given))

    def _put_rows(self, key: Key, rows: Rows) -> None:
        for (label, layer), values in rows.items():
            self.kept.put(self._name(key, "rows", label, layer), values)

    def _note(self, key: Key, label: str, layer: int, seen: Tensor) -> None:
        self.kept.put(self._name(key, "noted", label, layer), seen)

    def _told(self, key: Key, told: Sequence[str]) -> None:
        for line in told:
            self.kept.put(self._name(key, "failed"), torch.tensor(list(line.encode()), dtype=torch.uint8))

    def passed(self, key: Key, before: Sequence[Passed]) -> Passed:
        """What came of a pass, once all blocks are behind."""
        wanted, why = self.wanted[key], self._name(key, "failed")
        self.kept.let_go(self._name(key, "now"))
        if why in self.kept:
            return Passed({}, failed=bytes(self.kept.get(why).tolist()).decode())
        held = None
        if self._holds(wanted):
            layers = tuple(range(-1, self.top + 1))
            states = KeptStates(self.kept, self._name(key, "held"), layers)
            held = HeldStates(states, self._calls.get(key) if wanted.calls else None)
        rows = reduce_held(wanted, held.states, wanted.reducing(before)) if held is not None else self._rows(key)
        if wanted.alone is not None and held is not None:
            rows = {**rows, **self._rows(key)}
        return Passed(rows, held, noted=KeptRows(self.kept, self._name(key, "noted"), wanted.noting))

    def _rows(self, key: Key) -> Rows:
        """The rows that were kept, in the order in which a whole model would give them."""
        wanted = self.wanted[key]
        labels = [] if self._holds(wanted) else list(wanted.reducing(()))
        places = [(label, layer) for layer in wanted.layers for label in labels]
        if wanted.alone is not None:
            places += [(label, block) for block in wanted.alone.blocks for label in wanted.alone.reductions]
        return KeptRows(self.kept, self._name(key, "rows"), tuple(places))

    def _name(self, key: Key, *parts: Any) -> str:
        return "|".join(map(str, chain((self.number, *key), parts)))
