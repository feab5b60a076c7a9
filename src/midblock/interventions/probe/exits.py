"""Early exit: a model read off, or cut off, behind any of its blocks.

Cost: read off, a forward pass and a head's worth of logits at each depth, one layer's states held; cut off at block l,
l + 1 of L blocks a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, device_of, fed
from midblock.data import Batch
from midblock.evaluation import Scores, Targets, check_finite, score
from midblock.trace import Reduction, run_backbone, same_states, watch
from midblock.trace.walk import Asked, Pass, Work

OnExit = Callable[[int, Scores], None]
Exits = tuple[str, Anatomy, Batch, Targets, Sequence[int], int, OnExit]  # as `score_exits` takes them


def score_exits(
    name: str,
    anatomy: Anatomy,
    batch: Batch,
    targets: Targets,
    layers: Sequence[int],
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
        picked = targets.pick(states)
        if layer == last:
            kept[layer] = picked
        on_exit(layer, read_exit(name, anatomy, layer, picked, targets, vocabulary))

    with watch(anatomy, layers, on_layer):
        output = run_backbone(anatomy, input_ids)
    if last in kept:
        check_last(name, anatomy, targets.pick(output), kept[last])


def exit_work(
    name: str,
    anatomy: Anatomy,
    batch: Batch,
    targets: Targets,
    layers: Sequence[int],
    vocabulary: int,
    on_exit: OnExit,
) -> Work:
    """The same as work for a walk: the states are gathered at all layers, then read.

    Args:
        on_exit: as all others, as of `score_exits`.
    """
    last = len(anatomy) - 1
    gather: dict[str, Reduction] = {"exit": lambda states, mask: targets.pick(states)}
    nowhere = torch.zeros_like(batch.input_ids, dtype=torch.bool)  # what is not finite is told where it is read
    (passed,) = yield Asked((Pass(name, batch, nowhere, layers=(*layers, last + 1), reductions=gather),))
    yield Asked()
    for layer in layers:
        picked = passed.rows["exit", layer]
        on_exit(layer, read_exit(name, anatomy, layer, picked, targets, vocabulary))
        if layer == last:
            check_last(name, anatomy, passed.rows["exit", last + 1].to(device_of(anatomy.head)), picked)


def read_exit(
    name: str, anatomy: Anatomy, layer: int, picked: Float[Tensor, "n D"], targets: Targets, vocabulary: int
) -> Scores:
    """What the final norm and the head make of states behind a layer.

    Args:
        picked: the states at the positions that predict.
        layer, targets, vocabulary: as of `score_exits`.

    Raises:
        MidblockError: a likelihood that is not finite.
    """
    with torch.inference_mode():
        scores = score(anatomy, anatomy.normed(picked), targets.tokens, vocabulary)
    check_finite(scores, targets, name, layer)
    return scores


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


def check_last(name: str, anatomy: Anatomy, own: Float[Tensor, "n D"], picked: Float[Tensor, "n D"]) -> None:
    """Raise MidblockError unless what the model hands its head is what is read off its last block."""
    with torch.inference_mode():
        read = anatomy.normed(picked)
    if not same_states(read, own):
        norm = anatomy.names["final_norm"]
        what = f"{name}: the final norm {norm}, put on its last block, does not make what its head is given"
        raise MidblockError(what, hint="depth cannot be read off this architecture")
