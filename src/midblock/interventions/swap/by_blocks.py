"""All cells of a swap in lockstep, block by block: both models' are in memory, and every stream takes one of them.

A stream is one mix of blocks on one batch. Those that took the same blocks so far are one, so that what lies below a
swapped segment is the host's own pass here, too. Cost: each model's files are read once, and once more what stands
before their blocks where embeddings are compared; the states of all streams, on disk where memory is short. A swap that
is stopped on its way through the blocks begins again.
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
from midblock.trace import BlockCalls
from midblock.trace.engine import HEADS
from midblock.trace.outline import TRIED, Outline, Shared
from midblock.trace.tensor_store import TensorStore

Stream = tuple[int, Cell | None]  # whose body, and what of the other model is in it
History = tuple[int, tuple[int, ...]]  # whose embedding and calls, and whose blocks it went through


@dataclass(eq=False)
class StreamsByBlocks:
    """All streams of all batches.

    Attributes:
        models: the base and the tuned model.
        batches: what they are fed.
        streams: all that are wanted.
        limit: bytes of states that are held before they go to disk.
        advance: told of each batch's share of tokens behind each block.
    """

    models: tuple[BlockwiseModel, BlockwiseModel]
    batches: Sequence[Batch]
    streams: Sequence[Stream]
    limit: int
    advance: Callable[[float], None]
    _calls: dict[tuple[int, int], BlockCalls] = field(default_factory=dict)
    _shared: Shared = field(default_factory=Shared)

    def run(self) -> Iterator[tuple[int, Stream, Float[Tensor, "B T D"]]]:
        """Give what leaves the last block, batch by batch, with the final norms and heads of both models there.

        Raises:
            MidblockError: a model that cannot be run block by block, or whose blocks hand on more than states.
        """
        total = len(self.models[0].anatomy)
        with TensorStore(None, self.limit) as kept:
            for which in (0, 1):
                self._record(which, kept)
            for block in range(total):
                after = None if block == total - 1 else block + 1
                with self.models[0].loaded(block, then=after), self.models[1].loaded(block, then=after):
                    self._through(block, kept)
            with self.models[0].loaded(*HEADS), self.models[1].loaded(*HEADS):
                for number in range(len(self.batches)):
                    for stream in self.streams:
                        yield number, stream, kept.get(_name(number, _history(stream, total)))

    def _record(self, which: int, kept: TensorStore) -> None:
        """How a model calls its blocks, and what enters the first."""
        model = self.models[which]
        with Outline.tried(model, self.batches[0].start(TRIED).input_ids) as outline:
            if outline.hands_on:
                what = f"{model.name}: its blocks hand on more than their states"
                raise MidblockError(what, hint="they are exchanged in whole models: leave out --max-memory")
        with model.loaded("embedding", "around", "final_norm"):
            for number, batch in enumerate(self.batches):
                calls = self._shared.of(outline.record(batch.input_ids))
                kept.put(_name(number, (which, ())), calls.entering.pop(0))
                kept.step(kept.done + 1)
                self._calls[number, which] = calls

    def _through(self, block: int, kept: TensorStore) -> None:
        """Every stream of every batch through one block, its own model's or the other's."""
        after = dict.fromkeys(_history(stream, block + 1) for stream in self.streams)
        for number, batch in enumerate(self.batches):
            for start, went in after:
                model = self.models[went[-1]]
                # a block may write over what it is given
                states = kept.get(_name(number, (start, went[:-1]))).to(model.device, copy=True)
                run = self._calls[number, start].run
                kept.put(_name(number, (start, went)), run(list(model.anatomy.blocks), states, block, block + 1))
                kept.step(kept.done + 1)
            for stream in self.streams:
                kept.drop(_name(number, _history(stream, block)))
            self.advance(batch.input_ids.numel() / len(self.models[0].anatomy))


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
