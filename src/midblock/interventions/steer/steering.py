"""steered: add a vector to the residual stream behind chosen blocks, for as long as a `with` lasts.

h_l ← h_l + α v_l at every token. It works wherever the model is called: scoring, and generating with a cache, since
every token passes each block once. Described in docs/causes/steer.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from midblock.base import MidblockError, unknown
from midblock.checkpoints import Anatomy

ADDING = ("increments", "whole")


@dataclass
class Touched:
    """What was steered.

    Attributes:
        calls: by block, how many forward passes its output was changed in.
    """

    calls: dict[int, int] = field(default_factory=dict)


@contextmanager
def steered(anatomy: Anatomy, vectors: Mapping[int, Float[Tensor, "*rows D"]], alpha: float = 1.0) -> Iterator[Touched]:
    """Add alpha·vector to the output of each given block, at every token, in every forward pass inside the `with`.

    Padded positions get the vector too. That is harmless: causal attention never looks at padding on the right, and
    the attention mask hides padding on the left. The model itself is not touched, and is what it was afterwards.

    Args:
        anatomy: of the model to steer.
        vectors: what to add, by block: one vector for all rows of a batch, or one for each (B×1×D); cast to the states'
            dtype once, after the product with alpha in their own.
        alpha: 0 adds nothing: the states stay as they are, bit for bit. A vector of zeros does neither.

    Raises:
        MidblockError: no block, one that the model does not have, a vector of another width or that is not finite, or
            a block that no forward pass reached.
    """
    _check(anatomy, vectors)
    amounts = {block: alpha * vector for block, vector in sorted(vectors.items())}
    amounts = {block: amount for block, amount in amounts.items() if bool(amount.any())}
    touched, hooks = Touched(dict.fromkeys(amounts, 0)), []
    try:
        for block, amount in amounts.items():
            hooks.append(anatomy.blocks[block].register_forward_hook(_adding(block, amount, touched)))
        yield touched
    finally:
        for hook in hooks:
            hook.remove()
    if missed := [block for block, calls in touched.calls.items() if not calls]:
        raise MidblockError(f"the forward pass never reached block {missed[0]}")


def _check(anatomy: Anatomy, vectors: Mapping[int, Tensor]) -> None:
    if not vectors:
        raise MidblockError("no block was given to steer")
    for block, vector in sorted(vectors.items()):
        if not 0 <= block < len(anatomy):
            raise MidblockError(f"block {block} cannot be steered; the model has blocks 0 to {len(anatomy) - 1}")
        if (width := vector.shape[-1]) != anatomy.width:
            raise MidblockError(f"the direction of block {block} has {width} channels, the model {anatomy.width}")
        if not bool(torch.isfinite(vector).all()):
            raise MidblockError(f"the direction of block {block} is not finite")


def _adding(block: int, amount: Tensor, touched: Touched) -> Callable[..., Any]:
    ready: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def add(states: Tensor) -> Tensor:
        place = (states.device, states.dtype)
        if place not in ready:
            # First the dtype: some devices have no float64.
            ready[place] = amount.to(states.dtype).to(states.device)
        touched.calls[block] += 1
        return states + ready[place]

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return add(output) if isinstance(output, Tensor) else (add(output[0]), *output[1:])

    return hook


def amounts_to_add(vectors: Mapping[int, Float[Tensor, "D"]], adding: str) -> dict[int, Float[Tensor, "D"]]:
    """What to add behind each of the chosen blocks, given the direction of each.

    What a block adds stays in the residual stream, so whole directions pile up: behind twenty blocks the states have
    moved by about ten times the shift that was measured there.

    Args:
        vectors: the directions, by chosen block.
        adding: "whole", or "increments": a block adds its direction minus that of the chosen block below, so that all
            of them together add up to the topmost one's.

    Raises:
        MidblockError: another way of adding.
    """
    if adding not in ADDING:
        raise unknown("way of adding", adding, ADDING)
    blocks = sorted(vectors)
    if adding == "whole":
        return {block: vectors[block] for block in blocks}
    below = dict(pairwise(reversed(blocks)))
    return {block: vectors[block] - vectors[below[block]] if block in below else vectors[block] for block in blocks}
