"""How far a model moved: KL from a reference's next-token distributions, and the likelihood of answers.

Both are means over tokens, sum over count; their intervals resample prompts, because a prompt's tokens go together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from midblock.base import MidblockError, Progress, Silent, generator
from midblock.checkpoints import Anatomy, device_of, without_adapters
from midblock.data import Batch, TokenizedSet, make_batches
from midblock.evaluation.generate import evaluating

LEVEL = 0.95
RESAMPLES = 1000
CHUNK = 1 << 24  # logits held at a time, per model: 128 MB in float64

Prompts = TokenizedSet | Sequence[Batch]


@dataclass(frozen=True, eq=False)
class TokenMean:
    """A mean over the tokens of N prompts.

    Attributes:
        value: in nats per token.
        low, high: its 95 % interval, from bootstrap samples of the prompts; NaN for a single one.
        index: the prompts' identities, ascending; those without a token that counts are left out.
        sums: each prompt's sum over its tokens.
        counts: each prompt's number of tokens.
    """

    value: float
    low: float
    high: float
    index: Int[Tensor, "N"]
    sums: Float[Tensor, "N"]
    counts: Int[Tensor, "N"]

    @property
    def n(self) -> int:
        """N, the number of prompts."""
        return len(self.index)


def mean_divergence(
    model: nn.Module,
    reference: nn.Module | None,
    prompts: Prompts,
    *,
    region: str = "all",
    batch_tokens: int = 1024,
    seed: int = 0,
    progress: Progress | None = None,
) -> TokenMean:
    """KL(reference‖model) between next-token distributions, in nats per token.

    Args:
        model: a causal language model, PEFT-wrapped or not.
        reference: the model to compare with; None for `model` itself with its adapters off.
        prompts: what both read.
        region: "all" for the distribution behind every token, the last included; "prompt" or "answer" for those that
            predict a token of it.
        batch_tokens: most tokens a batch may hold, where batches are yet to be made.
        seed: decides the resampling.

    Raises:
        MidblockError: no token counts, a divergence is not finite, or `reference` is None and there are no adapters.
    """
    ours = _anatomy(model)
    theirs = ours if reference is None else _anatomy(reference)
    # Asked before anything runs, and entered anew for each forward pass.
    away: Callable[[], AbstractContextManager[None]]
    away = _switch(model) if reference is None else nullcontext
    V = min(int(anatomy.config.vocab_size) for anatomy in (ours, theirs))

    def measure(batch: Batch) -> tuple[Tensor, Tensor]:
        where = batch.region("all") if region == "all" else _predicting(batch, region)
        states = _states(ours, batch, where)
        with away():
            expected = _states(theirs, batch, where)
        parts = []
        for chunk in _chunks(len(states), V):
            q = _log_probs(ours, states[chunk], V)
            with away():
                p = _log_probs(theirs, expected[chunk], V)
            parts.append((p.exp() * (p - q.to(p.device))).sum(-1).clamp(min=0).cpu())
        return where, torch.cat(parts) if parts else torch.zeros(0)

    with evaluating(model), evaluating(model if reference is None else reference):
        return _mean(measure, _batches(prompts, batch_tokens), "KL divergence", seed, progress)


def mean_nll(
    model: nn.Module,
    prompts: Prompts,
    *,
    region: str = "answer",
    batch_tokens: int = 1024,
    seed: int = 0,
    progress: Progress | None = None,
) -> TokenMean:
    """Negative log-likelihood of the tokens in a region, in nats per token; its exponential is the perplexity.

    Args:
        model: a causal language model, PEFT-wrapped or not.
        prompts: what it reads.
        region: whose tokens count: "answer", "prompt" or "all"; a sample's first token, before which nothing stands,
            never does.
        batch_tokens: most tokens a batch may hold, where batches are yet to be made.
        seed: decides the resampling.

    Raises:
        MidblockError: no token counts, or a likelihood is not finite.
    """
    anatomy = _anatomy(model)
    V = int(anatomy.config.vocab_size)

    def measure(batch: Batch) -> tuple[Tensor, Tensor]:
        where = _predicting(batch, region)
        targets = batch.input_ids.roll(-1, 1)[where]
        states = _states(anatomy, batch, where)
        parts = []
        for chunk in _chunks(len(states), V):
            log_probs = _log_probs(anatomy, states[chunk], V)
            parts.append(-log_probs.gather(1, targets[chunk, None].to(log_probs.device)).squeeze(1).cpu())
        return where, torch.cat(parts) if parts else torch.zeros(0)

    with evaluating(model):
        return _mean(measure, _batches(prompts, batch_tokens), "negative log-likelihood", seed, progress)


def _switch(model: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    if not hasattr(model, "disable_adapter"):
        raise MidblockError("a reference model is needed: this one has no adapters to switch off")
    return lambda: without_adapters(model)


def _anatomy(model: Any) -> Anatomy:
    """The parts of a model, found inside PEFT's wrapper where there is one."""
    if not hasattr(model, "get_base_model"):
        return Anatomy.of(model)
    if any(config.is_prompt_learning for config in model.peft_config.values()):
        raise MidblockError("prompt tuning changes the input, not the model", hint="use LoRA or another adapter")
    return Anatomy.of(model.get_base_model())


def _batches(prompts: Prompts, batch_tokens: int) -> Sequence[Batch]:
    return make_batches(prompts.prompts, batch_tokens=batch_tokens) if isinstance(prompts, TokenizedSet) else prompts


def _predicting(batch: Batch, region: str) -> Bool[Tensor, "B T"]:
    """Positions whose next token is of the region."""
    ahead = batch.region(region).roll(-1, 1)
    ahead[:, -1] = False
    return ahead


def _states(anatomy: Anatomy, batch: Batch, where: Bool[Tensor, "B T"]) -> Float[Tensor, "n D"]:
    """What the head is given at the chosen positions; padding on the right is never looked at."""
    output = anatomy.backbone(input_ids=batch.input_ids.to(device_of(anatomy.embedding)), use_cache=False)
    return output[0][where.to(output[0].device)]


def _log_probs(anatomy: Anatomy, states: Float[Tensor, "n D"], V: int) -> Float[Tensor, "n V"]:
    """ln p over the first V tokens, in float64."""
    logits = anatomy.logits(states.to(device_of(anatomy.head)))[..., :V]
    logits = logits.cpu() if logits.device.type == "mps" else logits  # MPS has no float64
    return torch.log_softmax(logits.double(), dim=-1)


def _chunks(count: int, V: int) -> Iterator[slice]:
    size = max(1, CHUNK // V)
    return (slice(start, start + size) for start in range(0, count, size))


def _mean(
    measure: Callable[[Batch], tuple[Tensor, Tensor]],
    batches: Sequence[Batch],
    title: str,
    seed: int,
    progress: Progress | None,
) -> TokenMean:
    """Sum each prompt's tokens and divide by their number.

    Args:
        measure: gives the positions of a batch that count (B×T) and a value for each of them, row by row.
    """
    advance = (progress or Silent()).phase(f"measuring {title}", sum(len(batch.index) for batch in batches))
    index, sums, counts = [], [], []
    for batch in batches:
        where, values = measure(batch)
        rows = where.nonzero()[:, 0].cpu()
        if not bool(torch.isfinite(values).all()):
            prompt = int(batch.index[rows[~torch.isfinite(values)][0]])
            raise MidblockError(f"{title} is not finite (first in prompt {prompt})", hint="try --dtype float32")
        index.append(batch.index.cpu())
        sums.append(torch.zeros(len(batch.index), dtype=torch.float64).index_add(0, rows, values.double()))
        counts.append(where.sum(1).cpu())
        advance(len(batch.index))
    if not batches or not int(sum(count.sum() for count in counts)):
        raise MidblockError(f"{title}: no token counts", hint="the region is empty in every prompt")
    return _finish(torch.cat(index), torch.cat(sums), torch.cat(counts), seed)


def _finish(index: Int[Tensor, "M"], sums: Float[Tensor, "M"], counts: Int[Tensor, "M"], seed: int) -> TokenMean:
    order = torch.argsort(index, stable=True)
    order = order[counts[order] > 0]
    index, sums, counts = index[order], sums[order], counts[order]
    N = len(index)
    low = high = float("nan")
    if N > 1:
        draws = generator(seed, "bootstrap", N).multinomial(N, np.full(N, 1 / N), RESAMPLES)
        means = (draws @ sums.numpy()) / (draws @ counts.numpy())
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return TokenMean(float(sums.sum() / counts.sum()), low, high, index, sums, counts)
