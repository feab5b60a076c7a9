"""Anatomy of a decoder: its blocks, embedding, final norm and head, and every parameter's place among them.

All of it is found from the model itself, its module tree and its config; a walk over the modules, some milliseconds.
Reading predictions off a depth, exchanging blocks and naming weights all start from it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints.offloaded import hooks_of
from midblock.checkpoints.own_logits import modules_around, own_logits
from midblock.checkpoints.places import located, of_parameters
from midblock.checkpoints.projections import Projection
from midblock.checkpoints.roles import other_modality


@dataclass(frozen=True)
class Anatomy:
    """The parts of a causal language model that layer-wise work needs.

    Attributes:
        model: the causal language model itself, inside PEFT's wrapper if there is one.
        backbone: the model without its head; called with `input_ids` it runs embedding, blocks and final norm.
        blocks: the L decoder blocks, bottom first.
        embedding: the token embedding.
        final_norm: the norm between the last block and the head.
        head: the output projection to the vocabulary.
        names: the dotted path of each of these parts in the model.
        width: D, the residual stream's width.
        around: the modules between `model` and what it is called for, `backbone` last.
        projections: every parameter, by its name in `named_parameters()` when the anatomy was taken.
    """

    config: Any
    model: nn.Module = field(repr=False)
    backbone: nn.Module
    blocks: nn.ModuleList
    embedding: nn.Module
    final_norm: nn.Module
    head: nn.Module
    names: dict[str, str]
    width: int
    around: tuple[nn.Module, ...] = field(default=(), repr=False)
    projections: Mapping[str, Projection] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: nn.Module) -> Anatomy:
        """Find the parts of `model`, a transformers causal language model.

        Raises:
            MidblockError: a part was not found; the message names it.
        """
        kind = type(model).__name__
        config = _text_config(model)
        paths = {id(module): name for name, module in model.named_modules()}
        holder, blocks = _find_blocks(model, config, kind)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
        if embedding is None:
            raise MidblockError(f"no token embedding found in {kind}")
        if head is None:
            raise MidblockError(f"no output head found in {kind}", hint="midblock works on causal language models")
        final_norm = _find_final_norm(holder, blocks, kind)
        holder = _that_takes_tokens(model, paths[id(holder)])
        parts = {"blocks": blocks, "embedding": embedding, "final_norm": final_norm, "head": head, "backbone": holder}
        names = {part: paths[id(module)] for part, module in parts.items()}
        projections = of_parameters(model, names, len(blocks), config)
        causal: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        around, width = modules_around(causal, holder, head), config.hidden_size
        return cls(config, causal, holder, blocks, embedding, final_norm, head, names, width, around, projections)

    def __len__(self) -> int:
        """L, the number of decoder blocks."""
        return len(self.blocks)

    def projection_of(self, name: str, shape: tuple[int, ...] = ()) -> Projection:
        """A parameter by its name; of one that no module has, as far as the name tells."""
        return self.projections.get(name) or located(name, shape, self.names, len(self))

    def normed(self, states: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """States of the last block, or of any other read early, behind the final norm; brought to where it computes."""
        weightless = next(self.final_norm.parameters(), None) is None  # as in OLMo-1
        return self.final_norm(states.to(device_of(self.blocks[-1] if weightless else self.final_norm)))

    def logits(self, normed: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """The model's own logits of states behind its final norm: the head, and all that it does around it."""
        return own_logits(self.model, self.around, normed)


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: also right for one that accelerate offloads, whose parameters are elsewhere."""
    for part in module.modules():  # hooks may stand at what holds weights itself; of several the last brings them
        devices = [getattr(hook, "execution_device", None) for hook in hooks_of(part)]
        if known := [device for device in devices if device is not None]:
            return torch.device(known[-1])
    return next(module.parameters()).device


def _text_config(model: nn.Module) -> Any:
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _find_blocks(model: nn.Module, config: Any, kind: str) -> tuple[nn.Module, nn.ModuleList]:
    depth = getattr(config, "num_hidden_layers", None)
    found = [
        (holder, child)
        for path, holder in model.named_modules()
        for name, child in holder.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == depth and any(True for _ in child[0].parameters())
        if not other_modality(f"{path}.{name}")
    ]
    if not found:
        raise MidblockError(f"no list of {depth} decoder blocks found in {kind}")
    # The outermost one: lists inside a block (experts) come later in the walk.
    return found[0]


def _that_takes_tokens(model: nn.Module, path: str) -> nn.Module:
    """The innermost module around the blocks that is called with token ids."""
    parts = path.split(".") if path else []
    around = [model.get_submodule(".".join(parts[:end])) for end in range(len(parts), 0, -1)]
    found = (module for module in around if "input_ids" in inspect.signature(module.forward).parameters)
    return next(found, around[0] if around else model)


def _find_final_norm(holder: nn.Module, blocks: nn.ModuleList, kind: str) -> nn.Module:
    children = list(holder.named_children())
    start = [module for _, module in children].index(blocks) + 1
    # OPT declares its final norm before its blocks, so a name with "final" counts wherever it stands.
    norms = [
        module
        for position, (name, module) in enumerate(children)
        if _is_norm(name, module) and (position >= start or "final" in name)
    ]
    if not norms:
        raise MidblockError(f"no final norm found in {kind}", hint="looked beside its list of blocks")
    return norms[0]


def _is_norm(name: str, module: nn.Module) -> bool:
    return "norm" in f"{name} {type(module).__name__}".lower()
