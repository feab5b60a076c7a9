"""How far a model moved: KL from a reference's next-token distributions, and the likelihood of answers.

KL(p_ref‖p) = Σ_v p_ref (ln p_ref − ln p) at every position, in full, not by sampling. Both are means over tokens, sum
over count; their intervals resample prompts, because a prompt's tokens go together. Cost: a forward pass of each model,
and both heads at the positions that count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from midblock.base import MidblockError, Progress, Silent
from midblock.checkpoints import Anatomy, fed, without_adapters
from midblock.data import Batch, TokenizedSet, make_batches
from midblock.evaluation.targets import Targets, chunks, log_probabilities, score
from midblock.evaluation.token_mean import TokenMean
from midblock.runs.lending import evaluating
from midblock.trace import through_backbone

CHUNK = 1 << 24  # logits compared at a time, per model: 128 MB in float64

Prompts = TokenizedSet | Sequence[Batch]


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
        where = batch.region("all") if region == "all" else Targets.of(batch, region).where
        states = _states(ours, batch, where)
        with away():
            expected = _states(theirs, batch, where)
        parts = []
        for chunk in chunks(len(states), V, CHUNK):
            q = log_probabilities(ours, states[chunk], V)
            with away():
                p = log_probabilities(theirs, expected[chunk], V)
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
    anatomy: Anatomy | None = None,
) -> TokenMean:
    """Negative log-likelihood of the tokens in a region, in nats per token; its exponential is the perplexity.

    Args:
        model: a causal language model, PEFT-wrapped or not.
        prompts: what it reads.
        region: whose tokens count: "answer", "prompt" or "all"; a sample's first token, before which nothing stands,
            never does.
        batch_tokens: most tokens a batch may hold, where batches are yet to be made.
        seed: decides the resampling.
        anatomy: the model's own, where many such means are taken: finding it costs as much as a short forward pass.

    Raises:
        MidblockError: no token counts, or a likelihood is not finite.
    """
    known = _anatomy(model) if anatomy is None else anatomy
    V = int(known.config.vocab_size)

    def measure(batch: Batch) -> tuple[Tensor, Tensor]:
        targets = Targets.of(batch, region)
        return targets.where, score(known, _states(known, batch, targets.where), targets.tokens, V).nll

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


def _states(anatomy: Anatomy, batch: Batch, where: Bool[Tensor, "B T"]) -> Float[Tensor, "n D"]:
    """What the head is given at the chosen positions; padding on the right is never looked at."""
    input_ids, where = fed(anatomy.embedding, batch.input_ids, where)
    states = through_backbone(anatomy, input_ids)
    return states[where.to(states.device)]


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
    return TokenMean.of(torch.cat(index), torch.cat(sums), torch.cat(counts), seed)
