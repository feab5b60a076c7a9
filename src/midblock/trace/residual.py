"""Watch the residual stream: every layer's hidden states, handed over as they appear and kept by nobody.

A forward pass with `output_hidden_states` keeps all L+1 layers of a batch alive; here each one goes to a callback and
is gone, so memory does not grow with depth. Cost: nothing beside the forward pass, which goes without the head.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, device_of

OnLayer = Callable[[int, Float[Tensor, "B T D"]], None]


@contextmanager
def watch(anatomy: Anatomy, layers: Collection[int], on_layer: OnLayer) -> Iterator[None]:
    """Call `on_layer(layer, states)` for each chosen layer of every forward pass inside the `with`.

    Args:
        layers: -1 the embedding (what enters block 0), 0…L-1 each block's output, L the final norm's output.
        on_layer: gets the states as the model made them, in its own dtype; it must not change them.

    Raises:
        MidblockError: a layer that the model does not have, one that no forward pass reached, or more than one stream.
    """
    total = len(anatomy)
    if beyond := [layer for layer in layers if not -1 <= layer <= total]:
        raise MidblockError(f"layer {beyond[0]} is not there; the model has layers -1 to {total}")
    waiting = set(layers)

    def seen(layer: int, states: Tensor) -> None:
        waiting.discard(layer)
        check_one_stream(states, layer, anatomy.width)
        on_layer(layer, states)

    hooks = []
    for layer in sorted(waiting):
        if layer == -1:
            hook = anatomy.blocks[0].register_forward_pre_hook(partial(_entering, seen), with_kwargs=True)
        else:
            module = anatomy.final_norm if layer == total else anatomy.blocks[layer]
            hook = module.register_forward_hook(partial(_leaving, seen, layer))
        hooks.append(hook)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if waiting:
        raise MidblockError(f"the forward pass never reached layer {min(waiting)}")


def check_one_stream(states: Tensor, layer: int, width: int) -> None:
    """Raise MidblockError unless what is handed on behind a layer is one residual stream, (batch, tokens, width)."""
    if states.ndim == 3 and states.shape[-1] == width:
        return
    where = "the embedding" if layer == -1 else f"block {layer}"
    what = f"{where} hands on states of shape {list(states.shape)}, not one residual stream (batch, tokens, {width})"
    raise MidblockError(what, hint="several streams at once are not measured; --weights-only and merge need none")


def _entering(seen: OnLayer, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    seen(-1, args[0] if args else kwargs["hidden_states"])


def _leaving(seen: OnLayer, layer: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    seen(layer, output if isinstance(output, Tensor) else output[0])


def run_backbone(anatomy: Anatomy, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    """One forward pass without the head and without a graph; what it computes on its way is seen by `watch`.

    Batches are padded on the right, where causal attention never looks back from, so no mask is passed and the fast
    causal kernel serves every batch.

    Returns:
        What the head is given.
    """
    with torch.inference_mode():
        return through_backbone(anatomy, input_ids)


def through_backbone(anatomy: Anatomy, input_ids: Int[Tensor, "B T"], **inputs: Any) -> Float[Tensor, "B T D"]:
    """The same with a graph, where the caller keeps one: every pass without the head goes through here.

    Args:
        inputs: what the model is given besides.
    """
    ids = input_ids.to(device_of(anatomy.embedding))
    states: Tensor = anatomy.backbone(input_ids=ids, use_cache=False, **inputs)[0]
    return states
