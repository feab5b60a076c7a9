"""Early exit: a model read off, or cut off, behind any of its blocks.

Cost: read off, a forward pass and a head's worth of logits at each depth, one layer's states held; cut off at block l,
l + 1 of L blocks a token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, device_of, fed
from midblock.data import Batch
from midblock.evaluation import Scores, Targets, check_finite, score
from midblock.trace import same_states, watch

OnExit = Callable[[int, Scores], None]


def score_exits(
    name: str,
    anatomy: Anatomy,
    batch: Batch,
    targets: Targets,
    layers: Collection[int],
    vocabulary: int,
    on_exit: OnExit,
) -> None:
    """One forward pass; at each layer the final norm and the head predict the target tokens.

    Each layer is scored as it passes and forgotten: states of one layer and one chunk of logits are held at a time.

    Args:
        name: what errors call the model.
        targets: of the batch.
        layers: -1 the embedding, 0…L-1 the blocks.
        on_exit: given the layer and its scores.

    Raises:
        MidblockError: a likelihood that is not finite, or a model whose last block, final norm and head do not make its
            own predictions.
    """
    input_ids, where = fed(anatomy.embedding, batch.input_ids, targets.where)
    targets = targets.among(where)
    last = len(anatomy) - 1
    kept: dict[int, Tensor] = {}

    def on_layer(layer: int, states: Float[Tensor, "B T D"]) -> None:
        normed = anatomy.normed(targets.pick(states))
        if layer == last:
            kept[layer] = normed
        scores = score(anatomy, normed, targets.tokens, vocabulary)
        check_finite(scores, targets, name, layer)
        on_exit(layer, scores)

    with watch(anatomy, layers, on_layer), torch.inference_mode():
        output = anatomy.backbone(input_ids=input_ids.to(device_of(anatomy.embedding)), use_cache=False)
    if last in kept:
        _check_same(name, anatomy, targets.pick(output[0]), kept[last])


@contextmanager
def cut_off(anatomy: Anatomy, layer: int) -> Iterator[int]:
    """Inside the `with` the model ends behind block `layer`: its final norm and head read that block's states.

    Yields:
        How many blocks were taken away.

    Raises:
        MidblockError: there is no such block.
    """
    total = len(anatomy)
    if not 0 <= layer < total:
        raise MidblockError(f"a model cannot end behind block {layer}; it has 0 to {total - 1}")
    place = anatomy.names["blocks"].rpartition(".")[2]
    whole = anatomy.blocks
    setattr(anatomy.backbone, place, nn.ModuleList(list(whole)[: layer + 1]))
    try:
        yield total - 1 - layer
    finally:
        setattr(anatomy.backbone, place, whole)


def _check_same(name: str, anatomy: Anatomy, own: Float[Tensor, "n D"], read: Float[Tensor, "n D"]) -> None:
    """What the model hands its head must be what was read off its last block."""
    if not same_states(read, own):
        norm = anatomy.names["final_norm"]
        what = f"{name}: the final norm {norm}, put on its last block, does not make what its head is given"
        raise MidblockError(what, hint="depth cannot be read off this architecture")
