"""Own logits: whether final norm and head, as they were found, make the very predictions that a model makes itself.

Whatever reads predictions off a model's states asks this first; it costs one forward pass over a few tokens.
"""

from __future__ import annotations

import torch
from torch import nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, device_of
from midblock.data import Batch
from midblock.trace import same_states

CHECKED = 16  # tokens


def check_head(name: str, model: nn.Module, batch: Batch) -> None:
    """Compare the predictions read off by `Anatomy.logits` with the model's own, on the first tokens of a batch.

    Args:
        name: what the error calls the model.

    Raises:
        MidblockError: the model does something between final norm and logits that is not known.
    """
    anatomy = Anatomy.of(model)
    start = batch.input_ids[:1, :CHECKED].to(device_of(anatomy.embedding))
    with torch.inference_mode():
        normed = anatomy.backbone(input_ids=start, use_cache=False)[0]
        read = anatomy.logits(normed.to(device_of(anatomy.head)))
        own = model(input_ids=start, use_cache=False).logits
    if bool(torch.isfinite(own).all()) and not same_states(read, own.to(read.dtype)):
        what = f"{name}: its head {anatomy.names['head']} alone does not make its own logits"
        raise MidblockError(what, hint="predictions cannot be read off this architecture")
