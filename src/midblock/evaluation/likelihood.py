"""How likely a model finds texts behind others: the sum of ln p over a continuation's tokens, nothing sampled.

Requests whose ids are the same but for the last token share a forward pass, so letters cost one a question. Cost: that
pass, and the head at the positions that count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from midblock.base import MidblockError, Progress, Silent
from midblock.checkpoints import Anatomy, fed
from midblock.data import Batch, TokenizedPrompt, make_batches
from midblock.evaluation.encoded_prompts import EncodedPrompt
from midblock.evaluation.generate import check_room
from midblock.evaluation.own_logits import check_head
from midblock.evaluation.targets import score
from midblock.runs.lending import evaluating
from midblock.trace import through_backbone


def log_likelihoods(
    name: str,
    model: nn.Module,
    requests: Sequence[TokenizedPrompt],
    *,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> Float64[Tensor, "n"]:
    """Sum of ln p (nats) over the answer's tokens of each request.

    Args:
        name: what errors call the model.
        model: a causal language model.
        requests: each with a token before its answer, at least; the answer ends with the last token.
        batch_tokens: most tokens, padding included, that a batch may hold.

    Raises:
        MidblockError: a request without an answer's token, too long for the model, or a likelihood that is not finite.
    """
    for place, request in enumerate(requests):
        if not 0 < request.answer_start < len(request.input_ids):
            raise MidblockError(f"text {place} has no token to tell how likely it is, or none before it")
    check_room(model, [EncodedPrompt(request.input_ids) for request in requests], 0)
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, request in enumerate(requests):
        alike.setdefault(request.input_ids[:-1], []).append(place)
    rows = [TokenizedPrompt(number, ids, len(ids)) for number, ids in enumerate(alike)]
    asked = list(alike.values())
    advance = (progress or Silent()).phase("comparing likelihoods", len(requests))
    sums = torch.zeros(len(requests), dtype=torch.float64)
    batches = make_batches(rows, batch_tokens=batch_tokens)
    check_head(name, model, batches[0])
    anatomy = Anatomy.of(model)
    with evaluating(model):
        for batch in batches:
            places = [asked[number] for number in batch.index.tolist()]
            owners, values = _of_batch(anatomy, batch, places, requests)
            sums.index_add_(0, owners, values)
            advance(sum(map(len, places)))
    if not bool(torch.isfinite(sums).all()):
        raise MidblockError(f"{name}: the likelihood of a text is not finite", hint="try --dtype float32")
    return sums


def _of_batch(
    anatomy: Anatomy, batch: Batch, places: Sequence[Sequence[int]], requests: Sequence[TokenizedPrompt]
) -> tuple[Tensor, Tensor]:
    """Which request each token belongs to, and its ln p."""
    input_ids, _ = fed(anatomy.embedding, batch.input_ids, batch.answer_mask)
    before = input_ids.shape[1] - batch.input_ids.shape[1]  # a soft prompt's tokens
    states = through_backbone(anatomy, input_ids)
    found = [
        (place, row, before + position - 1, requests[place].input_ids[position])
        for row, group in enumerate(places)
        for place in group
        for position in range(requests[place].answer_start, len(requests[place].input_ids))
    ]
    owners, rows, positions, tokens = torch.tensor(found).T
    normed = states[rows.to(states.device), positions.to(states.device)]
    return owners, -score(anatomy, normed, tokens, int(anatomy.config.vocab_size)).nll
