"""The sets of a batch's tokens that metrics are over: all that count, and where a prompt has sinks, those without them.

Which tokens are sinks is known only behind the base's last block, so its states are held until then and looked at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from midblock.metrics.metric import NO_SINKS
from midblock.metrics.sinks import sink_tokens, token_norms, without_sinks
from midblock.trace import Reduction


@dataclass(frozen=True, eq=False)
class TokenSets:
    """Of one batch.

    Attributes:
        mask: the tokens that count.
        sinks: the base's sink tokens; None where metrics are over all tokens alone.
    """

    mask: Bool[Tensor, "B T"]
    sinks: Bool[Tensor, "B T"] | None = None

    @classmethod
    def found(
        cls,
        mask: Bool[Tensor, "B T"],
        states: Iterable[Float[Tensor, "B T D"]],
        real: Bool[Tensor, "B T"],
        times: float | None,
    ) -> TokenSets:
        """Look for sinks in the base's states.

        Args:
            states: behind the embedding and each block.
            real: all of the prompts' tokens, whatever region counts.
            times: as `sink_tokens` takes it.
        """
        return cls(mask, sink_tokens((token_norms(each) for each in states), real, times))

    @cached_property
    def masks(self) -> Mapping[str, Bool[Tensor, "B T"]]:
        """The tokens that count, by suffix of the metrics over them; all of them first."""
        masks = {"": self.mask}
        if self.sinks is not None and bool(self.having.any()):
            masks[NO_SINKS] = without_sinks(self.mask, self.sinks)
        return masks

    @cached_property
    def having(self) -> Bool[Tensor, "B"]:
        """The prompts with a sink among the tokens that count; without sinks the others' rows are those over all."""
        if self.sinks is None:
            return torch.zeros(len(self.mask), dtype=torch.bool)
        return (self.mask & self.sinks).any(1)

    def over(self, reduce: Callable[[Tensor, Sequence[Tensor]], Tensor]) -> Reduction:
        """A reduction over each of the sets, whichever mask is given: B×S×… rows."""
        return lambda states, given: reduce(states, [mask.to(states.device) for mask in self.masks.values()])
