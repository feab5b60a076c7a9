"""Walk: batches through models, by one of two engines: whole models, or block by block.

What is done with a batch is a generator (`Work`): it asks for passes (`Asked`), is handed what came of them, and gives
whatever it finds. Whole models run each pass when it is asked for. Block by block, all batches' passes through a model
are one walk: each block is read once, every batch goes through it, and it is let go of. Numbers are the same, to the
bit where the same kernels run on the same values. Cost block by block: each model's files are read once, and states
wait on disk where memory is short (`TensorStore`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.data import Batch
from midblock.trace.held_states import HeldStates, hold_states
from midblock.trace.stream import Reduction, reduce_batch, reduce_states

Rows = Mapping[tuple[str, int], Tensor]  # by reduction and layer
Around = Callable[[], AbstractContextManager[None]]
Note = Callable[[str, int, Tensor], None]  # takes a label, a layer and what was seen there
Watching = Callable[[Note], AbstractContextManager[None]]

FATAL = (torch.OutOfMemoryError, torch.AcceleratorError)  # of the device, whatever runs on it


@dataclass(frozen=True, eq=False)
class Passed:
    """What came of a pass.

    Attributes:
        rows: of its reductions, by reduction and layer.
        held: the states of all layers, where they were asked for.
        failed: why a lenient pass came to nothing; "" where it came through.
        noted: what was noted while it was watched, by label and layer.
    """

    rows: Rows
    held: HeldStates | None = None
    failed: str = ""
    noted: Rows = field(default_factory=dict)

    @property
    def states(self) -> HeldStates:
        """The states that were asked for."""
        if self.held is None:
            raise MidblockError("the states of this pass were not asked for")
        return self.held


@dataclass(frozen=True, eq=False)
class Alone:
    """What each block of the model makes of just what another's own block was given.

    Attributes:
        held: the other's states, with calls.
        blocks: those that are run.
        name: what errors call it.
    """

    held: HeldStates
    blocks: tuple[int, ...]
    reductions: Mapping[str, Reduction]
    name: str


@dataclass(frozen=True, eq=False)
class Pass:
    """One batch through one model.

    Attributes:
        model: which.
        name: what errors call it.
        mask: the tokens that count.
        layers: those that are reduced; () runs the model only where states are held.
        reductions: of each layer; or, given what came of the passes that were asked for before it, those.
        hold: keep the states of all layers.
        calls: with `hold`, how its blocks were called too.
        alone: run its blocks on another's states too.
        around: entered around all that is run.
        watching: given what takes notes, entered around the model's own pass alone; block by block around each of its
            blocks.
        noting: labels and layers of which it takes notes.
        lenient: what fails is told, and ends nothing.
    """

    model: str
    batch: Batch
    mask: Bool[Tensor, "B T"]
    name: str = ""
    layers: tuple[int, ...] = ()
    reductions: Mapping[str, Reduction] | Callable[[Sequence[Passed]], Mapping[str, Reduction]] = field(
        default_factory=dict
    )
    hold: bool = False
    calls: bool = False
    alone: Alone | None = None
    around: Around = nullcontext
    watching: Watching = lambda note: nullcontext()
    noting: tuple[tuple[str, int], ...] = ()
    lenient: bool = False

    @property
    def called(self) -> str:
        return self.name or self.model

    @property
    def runs(self) -> bool:
        """Whether the model itself is run, bottom to top."""
        return self.hold or bool(self.layers)

    @property
    def counts(self) -> bool:
        """Whether it is one of the passes that every batch takes, one a model, by which progress is told."""
        return self.runs and not self.lenient

    def reducing(self, before: Sequence[Passed]) -> Mapping[str, Reduction]:
        """The reductions, now that the passes before it are behind."""
        return self.reductions(before) if callable(self.reductions) else self.reductions


@dataclass(frozen=True, eq=False)
class Asked:
    """Passes that are wanted next; none asks for the models' final norms and heads to be there from now on."""

    passes: tuple[Pass, ...] = ()


Work = Generator[Any, Sequence[Passed], None]  # yields Asked, and whatever else it finds


def walk_whole(work: Work, anatomies: Mapping[str, Anatomy], keep: Callable[[Any], None]) -> None:
    """Do one batch's work, each pass when it is asked for.

    Args:
        anatomies: of the models, by name, in memory.
        keep: given what the work finds.

    Raises:
        MidblockError: whatever a pass raises.
    """
    answer: list[Passed] = []
    while (asked := next_asked(work, answer, keep)) is not None:
        answer = []
        for each in asked.passes:
            answer.append(run_whole(anatomies[each.model], each, answer))


def next_asked(work: Work, answer: Sequence[Passed] | None, keep: Callable[[Any], None]) -> Asked | None:
    """Hand a work its answer, and go on until it asks again; None where it has ended.

    Args:
        answer: None where it has not begun.
    """
    try:
        found = next(work) if not answer else work.send(answer)
        while not isinstance(found, Asked):
            keep(found)
            found = next(work)
    except StopIteration:
        return None
    return found


def run_whole(anatomy: Anatomy, wanted: Pass, before: Sequence[Passed] = ()) -> Passed:
    """One pass through a model in memory.

    Args:
        before: what came of the passes that were asked for before it.
    """
    with failing(wanted) as told, wanted.around():
        held, rows, noted = None, dict[tuple[str, int], Tensor](), dict[tuple[str, int], Tensor]()

        def note(label: str, layer: int, seen: Tensor) -> None:
            noted[label, layer] = seen

        if wanted.hold:
            with wanted.watching(note):
                held = hold_states(anatomy, wanted.batch.input_ids, calls=wanted.calls)
            rows |= reduce_held(wanted, held.states, wanted.reducing(before))
        elif wanted.runs:
            given = (wanted.called, anatomy, wanted.batch, wanted.mask, wanted.layers, wanted.reducing(before))
            with wanted.watching(note):
                rows |= reduce_batch(*given).rows
        if wanted.alone is not None:
            for block in wanted.alone.blocks:
                rows |= run_alone(anatomy, wanted, wanted.alone, block)
        return Passed(rows, held, noted=noted)
    return Passed({}, failed=told[0])


def reduce_held(wanted: Pass, states: Mapping[int, Tensor], reductions: Mapping[str, Reduction]) -> Rows:
    """The rows of a pass whose states were kept."""
    rows: dict[tuple[str, int], Tensor] = {}
    for layer in wanted.layers:
        rows |= reduce_states(wanted.called, layer, states[layer], wanted.batch, wanted.mask, reductions)
    return rows


def run_alone(anatomy: Anatomy, wanted: Pass, alone: Alone, block: int) -> Rows:
    """What one block makes of just what another model's was given."""
    states = alone.held.through(anatomy, block)
    return reduce_states(alone.name, block, states, wanted.batch, wanted.mask, alone.reductions)


@contextmanager
def failing(wanted: Pass) -> Iterator[list[str]]:
    """Of a lenient pass, take errors for what came of it; they are put into the list that is yielded."""
    told: list[str] = []
    try:
        yield told
    except FATAL:
        raise
    except (RuntimeError, TypeError, MidblockError) as error:
        if not wanted.lenient:
            raise
        said = error.what if isinstance(error, MidblockError) else str(error) or type(error).__name__
        told.append(said.strip().splitlines()[0].rstrip("."))
