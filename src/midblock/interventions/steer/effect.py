"""The effect of steering on how likely the tuned model's own answers are: by α, against random directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float64
from torch import Tensor, nn

from midblock.base import Estimate, Progress
from midblock.checkpoints import Anatomy
from midblock.data import Batch
from midblock.evaluation import TokenMean, difference, mean_nll, part_of_way
from midblock.interventions.steer.directions import turn_at_random
from midblock.interventions.steer.kept import KeptValues
from midblock.interventions.steer.steering import amounts_to_add, steered

Vectors = Mapping[int, Float64[Tensor, "D"]]


@dataclass(frozen=True)
class Effect:
    """What one α does to the NLL of held-out answers, in nats per token.

    Attributes:
        steered: the NLL.
        change: steered minus base, paired.
        random_changes: the same for each draw of random directions.
    """

    alpha: float
    steered: TokenMean
    change: Estimate
    random_changes: tuple[float, ...]

    @property
    def random_change(self) -> dict[str, float]:
        """Mean and range over the draws."""
        drawn = self.random_changes
        return {"value": sum(drawn) / len(drawn), "low": min(drawn), "high": max(drawn)}


@dataclass(frozen=True)
class Scorer:
    """Scores held-out answers under the base, steered or not.

    Attributes:
        model: the base.
        batches: the answers, in the region "answer".
        vectors: the direction of every block.
        adding: as in `amounts_to_add`.
    """

    model: nn.Module
    batches: Sequence[Batch]
    vectors: Vectors
    adding: str
    kept: KeptValues
    seed: int
    progress: Progress

    @cached_property
    def anatomy(self) -> Anatomy:
        """The base's parts, found once: each block and draw is another pass."""
        return Anatomy.of(self.model)

    def nll(self, name: str, model: nn.Module | None = None) -> TokenMean:
        """Without steering; of the base unless another model is given."""
        target = self.model if model is None else model
        return self.kept.mean(name, self.seed, lambda: mean_nll(target, self.batches, seed=self.seed))

    def effects(self, base: TokenMean, blocks: Sequence[int], alphas: Sequence[float], draws: int) -> list[Effect]:
        """Steer all chosen blocks together, with each α."""
        advance = self.progress.phase("steering", len(alphas) * (1 + draws))
        controls = [self._turned(draw) for draw in range(draws)]
        found = []
        for alpha in alphas:
            ours = self._steered(f"nll-{alpha!r}", self.vectors, blocks, alpha)
            advance(1)
            changes = []
            for draw, control in enumerate(controls):
                theirs = self._steered(f"nll-{alpha!r}-random-{draw}", control, blocks, alpha)
                changes.append(theirs.value - base.value)
                advance(1)
            found.append(Effect(alpha, ours, difference(base, ours, seed=self.seed), tuple(changes)))
        return found

    def _steered(self, name: str, vectors: Vectors, blocks: Sequence[int], alpha: float) -> TokenMean:
        amounts = amounts_to_add({block: vectors[block] for block in blocks}, self.adding)

        def measure() -> TokenMean:
            with steered(self.anatomy, amounts, alpha):
                return mean_nll(self.model, self.batches, seed=self.seed, anatomy=self.anatomy)

        return self.kept.mean(name, self.seed, measure)

    def _turned(self, draw: int) -> Vectors:
        return turn_at_random(self.vectors, self.seed, "control", draw)


def gap_closed(base: TokenMean, tuned: TokenMean, steered_mean: float, seed: int) -> float | None:
    """Share of the way from the base's NLL down to the tuned model's; None where that is not measurably lower."""
    gap = difference(tuned, base, seed=seed)
    return (base.value - steered_mean) / gap.value if gap.low > 0 else None  # NaN, of a single prompt, is not above 0


def gap_closed_interval(
    base: TokenMean, tuned: TokenMean, steered_: TokenMean, seed: int
) -> tuple[float, float] | None:
    """95 % interval of `gap_closed`: all three means are drawn with the same prompts."""
    if gap_closed(base, tuned, steered_.value, seed) is None:
        return None
    return part_of_way(base, steered_, tuned, seed=seed)
