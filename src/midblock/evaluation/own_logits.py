"""Own logits: whether what is read off a model's states are the very predictions that it makes itself.

Whatever reads predictions asks this first, of the model in hand and not of a list of families; it costs two forward
passes over a few tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, device_of
from midblock.data import Batch
from midblock.trace import same_states, watch

CHECKED = 16  # tokens


def check_head(name: str, model: nn.Module, batch: Batch) -> None:
    """Compare the predictions read off by `Anatomy.logits` with the model's own, on the first tokens of a batch.

    Args:
        name: what the error calls the model.

    Raises:
        MidblockError: the model does something between its decoder and its logits that is not known.
    """
    anatomy = Anatomy.of(model)
    start = batch.input_ids[:1, :CHECKED].to(device_of(anatomy.embedding))
    with torch.no_grad():  # not inference mode: what a module caches on its way must serve training too
        own = model(input_ids=start, use_cache=False).logits
        put_out = anatomy.backbone(input_ids=start, use_cache=False)[0]
        _compare(name, anatomy, put_out, own)


def check_lens(name: str, model: nn.Module, batch: Batch) -> None:
    """As `check_head`, and that the last block's states, put through the final norm, are what the head is given.

    Raises:
        MidblockError: something stands between the last block and the head that is not known.
    """
    check_head(name, model, batch)
    anatomy, seen = Anatomy.of(model), dict[int, Tensor]()
    start, total = batch.input_ids[:1, :CHECKED].to(device_of(anatomy.embedding)), len(anatomy)
    with torch.no_grad():
        with watch(anatomy, {total - 1, total}, lambda layer, states: seen.update({layer: states.clone()})):
            own = model(input_ids=start, use_cache=False).logits
        again = anatomy.final_norm(seen[total - 1].to(device_of(anatomy.final_norm)))
        if bool(torch.isfinite(own).all()) and not same_states(again, seen[total]):
            norm = anatomy.names["final_norm"]
            raise _refused(f"{name}: its final norm {norm} is given something else than its last block puts out")
        _compare(name, anatomy, seen[total], own)


def _compare(name: str, anatomy: Anatomy, normed: Tensor, own: Tensor) -> None:
    head = anatomy.names["head"]
    try:
        read = anatomy.logits(normed.to(device_of(anatomy.head)))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _refused(f"{name}: its head {head} cannot be run alone: {reason}") from error
    if bool(torch.isfinite(own).all()) and not same_states(read, own.to(read.dtype)):
        raise _refused(f"{name}: its head {head} alone does not make its own logits")


def _refused(what: str) -> MidblockError:
    return MidblockError(what, hint="predictions cannot be read off this architecture; metrics that need none can")
