"""The logits that a model itself makes of states behind its final norm.

Between final norm and logits stands the head, and in many families something more: a scale, a soft cap, a dense layer,
a vocabulary cut short. None of it is known here by name. The model's own forward pass is called with its decoder
stepped over: where the decoder would answer, the given states are its answer. Cost: the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def own_logits(
    model: nn.Module, around: Sequence[nn.Module], normed: Float[Tensor, "*batch D"]
) -> Float[Tensor, "*batch V"]:
    """Let a model make logits of what its decoder would have put out.

    Args:
        model: a causal language model.
        around: the modules around its blocks, as of `modules_around`; which of them a model calls differs.
        normed: states behind the final norm.
    """
    rows = normed.reshape(1, -1, normed.shape[-1])
    ids = torch.zeros(rows.shape[:2], dtype=torch.long, device=rows.device)  # never looked at but for their shape
    config: Any = model.config
    routers = {"output_router_logits": False} if getattr(config, "output_router_logits", False) else {}
    answer = _Answer(rows)
    with stepped_over({module: lambda *args, **kwargs: answer for module in around}):
        # the class's own forward: the instance's may be wrapped, by a trainer or by whoever scores targets in it
        logits = type(model).forward(model, input_ids=ids, use_cache=False, return_dict=True, **routers).logits
    return logits.reshape(*normed.shape[:-1], logits.shape[-1])


class _Answer:
    """What a decoder answers: states, and nothing of all else that it might be asked for."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, at: int | slice) -> Any:
        return (self.last_hidden_state,)[at]


def modules_around(model: nn.Module, backbone: nn.Module, head: nn.Module) -> tuple[nn.Module, ...]:
    """The modules between a head and what holds the blocks, the outermost first, the holder last."""
    path = next(name for name, module in model.named_modules() if module is backbone)
    parts = path.split(".") if path else []
    found = (model.get_submodule(".".join(parts[: end + 1])) for end in range(len(parts)))
    return tuple(module for module in found if all(part is not head for part in module.modules()))


@contextmanager
def stepped_over(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Inside the `with`, modules do something else than they would; hooks on them are called as ever."""
    before = [vars(module).get("forward") for module in forwards]
    for module, forward in forwards.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, own in zip(forwards, before, strict=True):
            if own is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = own
