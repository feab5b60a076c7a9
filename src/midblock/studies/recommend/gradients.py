"""How hard the loss of answers pulls on each block of a model as it is: gradient norms, batch by batch.

Only weights with two dimensions or more count, those that adapters can reach: a norm's few gains would say more about
the norm than about the block. Cost: a forward and a backward pass a batch, and a gradient as large as the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float64
from torch import nn
from torch.nn import functional

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.data import Batch
from midblock.evaluation import Targets
from midblock.trace import through_backbone


def gradient_norms(model: nn.Module, batches: Sequence[Batch], region: str = "answer") -> Float64[np.ndarray, "N L"]:
    """‖∂(mean −ln p)/∂W‖ of each block's weights, a row a batch; batches without a token in the region are left out.

    Raises:
        MidblockError: no token counts, or a gradient is not finite.
    """
    anatomy = Anatomy.of(model)
    weights = [[value for value in block.parameters() if value.ndim >= 2] for block in anatomy.blocks]
    rows = []
    with _differentiable([value for each in weights for value in each], model):
        for batch in batches:
            targets = Targets.of(batch, region)
            if not len(targets.tokens):
                continue
            states = through_backbone(anatomy, batch.input_ids)
            logits = anatomy.logits(targets.pick(states))
            functional.cross_entropy(logits.float(), targets.tokens.to(logits.device)).backward()
            rows.append([_norm(each) for each in weights])
            model.zero_grad(set_to_none=True)
    if not rows:
        raise MidblockError("no token counts for a gradient", hint="examples with answers, or a longer --max-length")
    found = np.array(rows)
    if not np.isfinite(found).all():
        block = int(np.argwhere(~np.isfinite(found))[0, 1])
        raise MidblockError(f"the gradient of block {block} is not finite", hint="try --dtype float32")
    return found


def _norm(weights: Sequence[nn.Parameter]) -> float:
    squares = [value.grad.float().square().sum().cpu() for value in weights if value.grad is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


@contextmanager
def _differentiable(weights: Sequence[nn.Parameter], model: nn.Module) -> Iterator[None]:
    """Inside, these weights alone have gradients; what they all had before is given back."""
    before = [(value, value.requires_grad) for value in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    chosen = {id(value) for value in weights}
    try:
        for value, _ in before:
            value.requires_grad_(id(value) in chosen)
        model.eval()
        with torch.enable_grad():
            yield
    finally:
        for value, needed in before:
            value.requires_grad_(needed)
            value.grad = None
        for module, training in modes:
            module.training = training
