"""The tokens that a model is to predict, teacher-forced: how likely it finds them, and which it gets right.

The head runs on their positions alone and in chunks: with V the vocabulary, one position costs D·V, more than a block.
Likelihoods are −ln p in nats, from a float64 log-softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, device_of
from midblock.data import Batch

CHUNK = 1 << 25  # logits held at a time, per model, in its own dtype: 128 MB in float32
# Of these so many become float64 at a time: on a CPU all of them would cost as much in fresh memory as the head itself.
PIECE = 1 << 20


@dataclass(frozen=True, eq=False)
class Targets:
    """n tokens of a batch of B prompts, each with the position before it.

    Attributes:
        where: positions whose next token is to be predicted.
        tokens: those next tokens, row by row.
        rows: the prompt of the batch that each belongs to.
        index: the prompts' identities.
    """

    where: Bool[Tensor, "B T"]
    tokens: Int[Tensor, "n"]
    rows: Int[Tensor, "n"]
    index: Int[Tensor, "B"]

    @classmethod
    def of(cls, batch: Batch, region: str = "answer") -> Targets:
        """The tokens of a region ("answer", "prompt", "all"), but for a sample's first, before which nothing stands.

        Raises:
            MidblockError: no such region.
        """
        where = batch.region(region).roll(-1, 1)
        where[:, -1] = False
        return cls(where, batch.input_ids.roll(-1, 1)[where], where.nonzero()[:, 0], batch.index)

    def pick(self, states: Float[Tensor, "B T D"]) -> Float[Tensor, "n D"]:
        """The states at the positions that predict."""
        return states[self.where.to(states.device)]

    def among(self, where: Bool[Tensor, "B W"]) -> Targets:
        """The same tokens where they are predicted at other positions: behind a soft prompt's."""
        return replace(self, where=where)

    def sums(self, scores: Scores) -> Float64[Tensor, "B 3"]:
        """Each prompt's sum of −ln p, number of right tokens, and number of tokens."""
        ones = torch.ones_like(scores.nll)
        values = torch.stack([scores.nll, scores.right.double(), ones], dim=1)
        return torch.zeros(len(self.index), 3, dtype=torch.float64).index_add(0, self.rows.cpu(), values)


@dataclass(frozen=True, eq=False)
class Scores:
    """How n tokens were predicted.

    Attributes:
        nll: −ln p of each, in nats.
        right: whether it is the likeliest of all.
    """

    nll: Float64[Tensor, "n"]
    right: Bool[Tensor, "n"]


def score(anatomy: Anatomy, normed: Float[Tensor, "n D"], tokens: Int[Tensor, "n"], vocabulary: int) -> Scores:
    """Read the model's predictions off its final norm's output.

    Args:
        normed: states behind the final norm, in the model's dtype.
        tokens: the right ones.
        vocabulary: number of token ids to predict among, the first ones.
    """
    nll, right = [], []
    for part in chunks(len(tokens), vocabulary, CHUNK):
        logits = _logits(anatomy, normed[part], vocabulary)
        wanted = tokens[part].to(logits.device)
        size = PIECE if logits.device.type == "cpu" else CHUNK
        for rows in chunks(len(logits), vocabulary, size):
            log_probs = torch.log_softmax(logits[rows], dim=-1, dtype=torch.float64)
            nll.append(-log_probs.gather(1, wanted[rows, None]).squeeze(1))
            right.append(log_probs.argmax(1) == wanted[rows])
    if not nll:
        return Scores(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.bool))
    return Scores(torch.cat(nll).cpu(), torch.cat(right).cpu())


def log_probabilities(anatomy: Anatomy, normed: Float[Tensor, "n D"], vocabulary: int) -> Float64[Tensor, "n V"]:
    """ln p over the first `vocabulary` tokens, in float64 (on the CPU where the device has none)."""
    return torch.log_softmax(_logits(anatomy, normed, vocabulary), dim=-1, dtype=torch.float64)


def _logits(anatomy: Anatomy, normed: Float[Tensor, "n D"], vocabulary: int) -> Float[Tensor, "n V"]:
    logits = anatomy.logits(normed.to(device_of(anatomy.head)))[..., :vocabulary]
    return logits.cpu() if logits.device.type == "mps" else logits


def chunks(count: int, vocabulary: int, size: int) -> Iterator[slice]:
    """Slices of so many positions that their logits are at most `size` numbers, one position at least."""
    step = max(1, size // vocabulary)
    return (slice(start, start + step) for start in range(0, count, step))


def check_finite(scores: Scores, targets: Targets, model: str, layer: int) -> None:
    """Raise MidblockError where a likelihood is no number, naming model, layer and prompt."""
    if bool(torch.isfinite(scores.nll).all()):
        return
    prompt = int(targets.index[targets.rows.cpu()[~torch.isfinite(scores.nll)][0]])
    where = "the embedding" if layer == -1 else f"layer {layer}"
    what = f"{model}: the likelihood read off {where} is not finite (first in prompt {prompt})"
    raise MidblockError(what, hint="try --dtype float32")
