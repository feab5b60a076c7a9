"""All cells of a swap in lockstep, block by block: both models' are in memory, and every stream takes one of them.

A stream is one mix of blocks on one batch. Those that took the same blocks so far are one, so that what lies below a
swapped segment is the host's own pass here, too. Cost: each model's files are read once, and once more what stands
before their blocks where embeddings are compared; the states of all streams, on disk where memory is short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from midblock.base import MidblockError
from midblock.checkpoints.blockwise import BlockwiseModel
from midblock.data import Batch
from midblock.interventions.swap.cells import EMBEDDING, Cell
from midblock.interventions.swap.stages import Stages
from midblock.trace import BlockCalls
from midblock.trace.engine import HEADS
from midblock.trace.outline import TRIED, Outline, Shared

Stream = tuple[int, Cell | None]  # whose body, and what of the other model is in it
History = tuple[int, tuple[int, ...]]  # whose embedding and calls, and whose blocks it went through


@dataclass(eq=False)
class StreamsByBlocks:
    """All streams of all batches.

    Attributes:
        models: the base and the tuned model.
        batches: what they are fed.
        streams: all that are wanted.
        stages: their states.
        advance: told of each batch's share of tokens behind each block.
        due: asked behind each batch whether to stop.
    """

    models: tuple[BlockwiseModel, BlockwiseModel]
    batches: Sequence[Batch]
    streams: Sequence[Stream]
    stages: Stages
    advance: Callable[[float], None]
    due: Callable[[], bool] = lambda: False
    _calls: dict[tuple[int, int], BlockCalls] = field(default_factory=dict)
    _shared: Shared = field(default_factory=Shared)

    @property
    def blocks(self) -> int:
        return len(self.models[0].anatomy)

    def walk(self) -> bool:
        """Take every stream through every block.

        Returns:
            Whether they are through; False where it was due to stop, and what can go on from there is saved.

        Raises:
            MidblockError: a model that cannot be run block by block, or whose blocks hand on more than states.
        """
        for which in (0, 1):
            self._record(which)
        for number in range(self.stages.block * len(self.batches) + self.stages.done):
            self._tell(number % len(self.batches))
        for block in range(self.stages.block, self.blocks):
            after = None if block == self.blocks - 1 else block + 1
            with self.models[0].loaded(block, then=after), self.models[1].loaded(block, then=after):
                if not self._through(block):
                    return False
            self.stages.next_block()
        return True

    def ends(self) -> Iterator[tuple[int, Stream, Float[Tensor, "B T D"]]]:
        """What leaves the last block, batch by batch, with the final norms and heads of both models there."""
        with self.models[0].loaded(*HEADS), self.models[1].loaded(*HEADS):
            for number in range(len(self.batches)):
                for stream in self.streams:
                    yield number, stream, self.stages.entering.get(_name(number, _history(stream, self.blocks)))

    def _record(self, which: int) -> None:
        """How a model calls its blocks, and what enters the first."""
        model = self.models[which]
        with Outline.tried(model, self.batches[0].start(TRIED).input_ids) as outline:
            if outline.hands_on:
                what = f"{model.name}: its blocks hand on more than their states"
                raise MidblockError(what, hint="they are exchanged in whole models: leave out --max-memory")
        with model.loaded("embedding", "around", "final_norm"):
            for number, batch in enumerate(self.batches):
                calls = self._shared.of(outline.record(batch.input_ids))
                entering = calls.entering.pop(0)
                if self.stages.block == 0:
                    self.stages.entering.put(_name(number, (which, ())), entering)
                    self.stages.entering.step(which * len(self.batches) + number + 1)
                self._calls[number, which] = calls

    def _through(self, block: int) -> bool:
        """Every stream of every batch through one block, its own model's or the other's; False where it must stop."""
        after = dict.fromkeys(_history(stream, block + 1) for stream in self.streams)
        for number in range(self.stages.done, len(self.batches)):
            for start, went in after:
                model = self.models[went[-1]]
                # a block may write over what it is given
                states = self.stages.entering.get(_name(number, (start, went[:-1]))).to(model.device, copy=True)
                left = self._calls[number, start].run(list(model.anatomy.blocks), states, block, block + 1)
                self.stages.leaving.put(_name(number, (start, went)), left)
            for stream in self.streams:
                self.stages.entering.drop(_name(number, _history(stream, block)))
            stop = self.due()
            self.stages.step(last=stop)
            self._tell(number)
            if stop:
                return False
        return True

    def _tell(self, number: int) -> None:
        self.advance(self.batches[number].input_ids.numel() / self.blocks)


def _history(stream: Stream, blocks: int) -> History:
    """What a stream is behind so many blocks."""
    body, cell = stream
    if cell is None:
        return body, (body,) * blocks
    if cell.last == EMBEDDING:
        return 1 - body, (body,) * blocks
    return body, tuple(1 - body if block in cell.blocks else body for block in range(blocks))


def _name(number: int, history: History) -> str:
    start, went = history
    return f"{number}|{start}|{''.join(map(str, went))}"
