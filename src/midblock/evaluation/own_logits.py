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
from midblock.trace import check_stream, same_states, through_backbone

CHECKED = 16  # tokens


def check_head(name: str, model: nn.Module, batch: Batch) -> None:
    """Compare the predictions read off by `Anatomy.logits` with the model's own, on the first tokens of a batch.

    Args:
        name: what the error calls the model.

    Raises:
        MidblockError: the model does something between its decoder and its logits that is not known.
    """
    _own(name, Anatomy.of(model), model, batch)


def check_lens(name: str, model: nn.Module, batch: Batch) -> None:
    """As `check_head`, and the same for what the final norm puts out, having seen that it is what it seems.

    Raises:
        MidblockError: as `check_head`, or as `midblock.trace.check_stream`: states are no residual stream, or something
            stands between the last block and the head that is not known.
    """
    anatomy = Anatomy.of(model)
    normed = check_stream(anatomy, batch.start(CHECKED).input_ids, name)
    _compare(name, anatomy, normed, _own(name, anatomy, model, batch))


def _own(name: str, anatomy: Anatomy, model: nn.Module, batch: Batch) -> Tensor:
    """The model's own logits, once those read off what its decoder puts out were found to be the same."""
    start = batch.start(CHECKED).input_ids.to(device_of(anatomy.embedding))
    with torch.no_grad():  # not inference mode: what a module caches on its way must serve training too
        own: Tensor = model(input_ids=start, use_cache=False).logits
        _compare(name, anatomy, through_backbone(anatomy, start), own)
    return own


def _compare(name: str, anatomy: Anatomy, normed: Tensor, own: Tensor) -> None:
    head = anatomy.names["head"]
    try:
        with torch.no_grad():
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
