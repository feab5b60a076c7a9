"""Sink tokens: the one or few tokens of a prompt whose norm is many times the others', which a mean over tokens shows.

A token is a sink where, behind the embedding or any block, its norm exceeds a multiple of the median over its prompt's
tokens; by another rule the first token is one whatever its norm. A prompt's set is the union over the layers of the
base model, so that all layers and all models mean the same tokens. Cost: a norm of every token. Sources: Sun et al.
2024 (massive activations), Xiao et al. 2023 (attention sinks). Described in docs/metrics.md, "Sinks".
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from midblock.base import MidblockError

FIRST = "first"
LEAST_TIMES = 2.0


def read_rule(text: str) -> float | None:
    """The multiple of the median that a rule names; None for the rule of the first token.

    Raises:
        MidblockError: neither a number from 2 on nor "first".

    Example:
        >>> read_rule("10")
        10.0
    """
    if text == FIRST:
        return None
    try:
        times = float(text)
    except ValueError:
        times = float("nan")
    if not LEAST_TIMES <= times < float("inf"):
        what = f"sinks is {text!r}; it is a multiple of the median norm from {LEAST_TIMES:g} on, or {FIRST!r}"
        raise MidblockError(what, hint="P1 counts every token (--tokens all); 10 is usual")
    return times


def token_norms(states: Float[Tensor, "B T D"]) -> Float[Tensor, "B T"]:
    """Length of each token's state, in float32 where the states are in a smaller type."""
    wider = states.dtype if states.dtype in (torch.float32, torch.float64) else torch.float32
    return torch.linalg.vector_norm(states, dim=-1, dtype=wider)


def sink_tokens(
    norms: Iterable[Float[Tensor, "B T"]], real: Bool[Tensor, "B T"], times: float | None
) -> Bool[Tensor, "B T"]:
    """Mark the tokens that are sinks.

    Args:
        norms: of the tokens behind the embedding and each block.
        real: all of the prompts' tokens, whatever region counts.
        times: as `read_rule` gives it.
    """
    if times is None:
        first = torch.zeros_like(real)
        first[:, 0] = True
        return first & real
    found = torch.zeros_like(real)
    for each in norms:
        known = each.to(real.device).masked_fill(~real, torch.nan)
        median = known.nanmedian(dim=1, keepdim=True).values
        found |= (known > times * median) & (median > 0)
    return found


def without_sinks(mask: Bool[Tensor, "B T"], sinks: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """The tokens that count and are no sinks; of a prompt where none would be left, all that count."""
    kept = mask & ~sinks
    return torch.where(kept.any(1, keepdim=True), kept, mask)
