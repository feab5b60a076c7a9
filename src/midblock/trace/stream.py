"""The streaming pass: every model sees the same batch, every layer is reduced to rows at once.

Cost: a forward pass without the head, and one layer's states beside it; a state that is not finite is an error there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.data import Batch
from midblock.trace.residual import run_backbone, watch

Reduction = Callable[[Float[Tensor, "B T D"], Bool[Tensor, "B T"]], Float[Tensor, "B *row"]]


@dataclass(frozen=True)
class Reduced:
    """One batch through one model: rows by (reduction, layer), on the CPU.

    Attributes:
        index: the samples' identities.
        rows: for each reduction and layer the rows of the batch, in the order of `index`.
    """

    index: Int[Tensor, " B"]
    rows: Mapping[tuple[str, int], Tensor]


def reduce_batch(
    name: str,
    anatomy: Anatomy,
    batch: Batch,
    mask: Bool[Tensor, "B T"],
    layers: Collection[int],
    reductions: Mapping[str, Reduction],
) -> Reduced:
    """Run one batch through one model and reduce each layer's states as they pass.

    Args:
        name: what errors call the model.
        mask: the tokens that count (real ones, in the chosen region).
        reductions: by name, functions of a layer's states and the mask that return a row per prompt.

    Raises:
        MidblockError: states that are not finite; the message names the model, the layer and the prompts.
    """
    rows: dict[tuple[str, int], Tensor] = {}

    def on_layer(layer: int, states: Tensor) -> None:
        rows.update(reduce_states(name, layer, states, batch, mask, reductions))

    with watch(anatomy, layers, on_layer), torch.inference_mode():
        run_backbone(anatomy, batch.input_ids)
    return Reduced(batch.index, rows)


def reduce_states(
    name: str,
    layer: int,
    states: Float[Tensor, "B T D"],
    batch: Batch,
    mask: Bool[Tensor, "B T"],
    reductions: Mapping[str, Reduction],
) -> dict[tuple[str, int], Tensor]:
    """Reduce one layer's states of one batch, as `reduce_batch` does; rows by (reduction, layer), on the CPU.

    Raises:
        MidblockError: states that are not finite; the message names the model, the layer and the prompts.
    """
    if states.device.type == "mps":
        states = states.cpu()  # reductions count in float64, which MPS has not
    here = mask.to(states.device)
    _check_finite(states, here, name, layer, batch)
    return {(reduction, layer): reduce(states, here).cpu() for reduction, reduce in reductions.items()}


def _check_finite(states: Tensor, mask: Tensor, name: str, layer: int, batch: Batch) -> None:
    # A sum is finite only if all its terms are, and is much cheaper than a test of each.
    if torch.isfinite(states.sum()):
        return
    bad = (~torch.isfinite(states)).any(-1) & mask.bool()
    if not bool(bad.any()):
        return
    prompt = int(batch.index[bad.any(1).nonzero()[0, 0].cpu()])
    where = "the embedding" if layer == -1 else f"layer {layer}"
    raise MidblockError(
        f"{name}: NaN or Inf in the activations of {where} (first in prompt {prompt})",
        hint="check the weights with --weights-only, or try --dtype float32",
    )
