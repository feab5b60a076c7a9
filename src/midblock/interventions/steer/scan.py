"""The scan: each block steered alone, by its own direction and by random ones of the same norm.

A block's directions go through the blocks together, as copies of one batch: as many as `batch_tokens` has room for.
Cost: for L blocks, half of (1 + random draws)·L passes over the answers; for a model whose blocks cannot be run one by
one, all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float64
from torch import Tensor

from midblock.base import Estimate
from midblock.checkpoints import Anatomy
from midblock.data import Batch
from midblock.evaluation import CHECKED, Targets, TokenMean, check_finite, difference, score
from midblock.interventions.steer.directions import turn_at_random
from midblock.interventions.steer.effect import Vectors
from midblock.interventions.steer.onward import Onward, Whole, obstacle
from midblock.interventions.steer.settings import SteerSettings
from midblock.runs.lending import evaluating
from midblock.runs.run import Bench
from midblock.runs.steps import Step, run_steps
from midblock.trace import RowStore


@dataclass(frozen=True)
class _Reading:
    """One batch, in as many copies as go through together."""

    copies: int
    targets: Targets
    passes: Onward | Whole


@dataclass
class Scan:
    """All batches through the base, each block steered alone; rows in `store`, saved piece by piece.

    Attributes:
        anatomy: of the base.
        batches: the answers, in the region "answer".
        vectors: the direction of every block.
        onward: passes go on from the steered block; else whole ones are run.
    """

    anatomy: Anatomy
    batches: Sequence[Batch]
    vectors: Vectors
    settings: SteerSettings
    store: RowStore = field(default_factory=RowStore)
    onward: bool = True
    _now: tuple[int, _Reading] | None = None

    def run(self, base: TokenMean, bench: Bench) -> list[tuple[Estimate, Estimate]]:
        """The change of NLL by each block's direction, and by random ones of the same norm, bottom first.

        Every block has random directions of its own, so that their luck is not shared over depth; theirs is the mean
        over the draws, between the smallest and the largest.
        """
        steps = list(self._steps())
        advance = bench.progress.phase("steering block by block", sum(step.cost for step in steps))
        with evaluating(self.anatomy.model):
            if reason := self._obstacle():
                self.onward = False
                bench.notes.append(f"Each block alone was steered in passes of the whole model: {reason}.")
            bench.notes += run_steps(steps, self.store, bench.partial, advance, owner=bench.owner)
        return [self._changes(base, block) for block in sorted(self.vectors)]

    def _steps(self) -> Iterator[Step]:
        """A block and a batch each; a block with nothing to add needs none."""
        for number, batch in enumerate(self.batches):
            for block in sorted(self.vectors):
                if bool(self.vectors[block].any()):
                    cost = batch.input_ids.numel() * (len(self.anatomy) - block)
                    yield Step(cost, partial(self._read, number, block), (_key(block),), tuple(batch.index.tolist()))

    def _obstacle(self) -> str | None:
        few, largest = self.batches[0].start(CHECKED), max(self.vectors.values(), key=lambda vector: vector.norm())
        ids = few.repeated(self._copies(self.batches[0])).input_ids
        return obstacle(self.anatomy, ids, largest, self.settings.scan_alpha)

    def _read(self, number: int, block: int) -> None:
        """One batch with one block steered, in each of its directions."""
        if self._now is None or self._now[0] != number:
            self._now = None  # the states of the batch before go first
            self._now = number, self._reading(self.batches[number])
        batch, reading = self.batches[number], self._now[1]
        each = [self._sums(reading, block, some) for some in self._directions(block).split(reading.copies)]
        sums, counts = torch.cat(each), reading.targets.where[: len(batch.index)].sum(1, dtype=torch.float64)
        self.store.update(_key(block), batch.index, torch.cat([counts[None], sums]).T)

    def _reading(self, batch: Batch) -> _Reading:
        copies = self._copies(batch)
        whole = batch.repeated(copies)
        passes = Onward.of(self.anatomy, whole.input_ids) if self.onward else Whole(self.anatomy, whole.input_ids)
        return _Reading(copies, Targets.of(whole), passes)

    def _copies(self, batch: Batch) -> int:
        """How many directions go through together, so that as few copies as can be stay idle."""
        directions, room = 1 + self.settings.random_draws, self.settings.batch_tokens // batch.input_ids.numel()
        return math.ceil(directions / math.ceil(directions / max(room, 1)))

    def _directions(self, block: int) -> Float64[Tensor, "V D"]:
        """The block's own direction, then the random ones."""
        own = {block: self.vectors[block]}
        draws = range(self.settings.random_draws)
        turned = (turn_at_random(own, self.settings.seed, "control", block, draw) for draw in draws)
        return torch.stack([own[block], *(each[block] for each in turned)])

    def _sums(self, reading: _Reading, block: int, some: Float64[Tensor, "v D"]) -> Float64[Tensor, "v B"]:
        """Each prompt's −ln p, summed over its answer, in each of some directions."""
        targets, prompts = reading.targets, len(reading.targets.index) // reading.copies
        amounts = torch.zeros(reading.copies, some.shape[1], dtype=some.dtype)
        amounts[: len(some)] = some
        normed = reading.passes.normed(block, amounts.repeat_interleave(prompts, 0)[:, None], self.settings.scan_alpha)
        with torch.inference_mode():
            vocabulary = int(self.anatomy.config.vocab_size)
            scores = score(self.anatomy, targets.pick(normed), targets.tokens, vocabulary)
        check_finite(scores, targets, f"the base steered behind block {block}", len(self.anatomy) - 1)
        return targets.sums(scores)[:, 0].view(reading.copies, prompts)[: len(some)]

    def _changes(self, base: TokenMean, block: int) -> tuple[Estimate, Estimate]:
        ours, *drawn = self._means(base, block)
        changes = [each.value - base.value for each in drawn]
        random = Estimate(sum(changes) / len(changes), min(changes), max(changes), base.n)
        return difference(base, ours, seed=self.settings.seed), random

    def _means(self, base: TokenMean, block: int) -> list[TokenMean]:
        """Of the block's own direction, then of the random ones."""
        if _key(block) not in self.store.rows:  # nothing is added: it is the base
            return [base] * (1 + self.settings.random_draws)
        rows = self.store.rows[_key(block)].finish()
        counts, *sums = rows.values.unbind(1)
        return [TokenMean.of(rows.index, each, counts.long(), self.settings.seed) for each in sums]


def _key(block: int) -> str:
    return f"block|{block}"
