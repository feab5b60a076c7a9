"""A model with a soft prompt: its embedding knows n more ids, and those ids stand among the prompt's.

Positions, padding, caches and generation then see tokens like any other, and the head never hears of them, tied or not.
The vectors are what the embedding puts out, after its own scale where it has one, as in PEFT. A model that looks at its
ids elsewhere too (embeddings of each layer) is tried and refused. Cost: a lookup; nothing is copied.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints.soft_prompt import AFTER_BOS, SoftPrompt

TRIED = 8  # ids on which a model is tried
CLOSE = 1e-4  # of the predictions' size: in float32 rounding makes at most 3e-6 of it
STORES = ("_modules", "_parameters", "_buffers", "_forward_hooks", "_forward_hooks_with_kwargs",
          "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")  # fmt: skip


class PromptedEmbedding(nn.Module):
    """A token embedding with n more ids, from `first` on, whose vectors are the soft prompt's.

    Attributes:
        inner: the model's own.
        prompt: n × D; gradients reach it where it asks for them.
        first: the id of its first vector.
        position, bos: as of `SoftPrompt`.
    """

    def __init__(self, inner: nn.Module, prompt: Tensor, position: str, bos: int | None) -> None:
        super().__init__()
        self.inner = inner
        self.prompt = nn.Parameter(prompt, requires_grad=prompt.requires_grad)
        self.first = len(self.weight)
        self.position, self.bos = position, bos

    @property
    def weight(self) -> Tensor:
        """The model's own matrix, for whatever asks an embedding for it."""
        return self.inner.weight  # type: ignore[return-value]

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the soft prompt's vectors."""
        return tuple(range(self.first, self.first + len(self.prompt)))

    def forward(self, input_ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        """The vectors of ids, the soft prompt's among them."""
        ours = input_ids >= self.first
        embedded: Tensor = self.inner(input_ids.masked_fill(ours, 0))
        vectors = self.prompt[(input_ids - self.first).clamp(min=0)]
        return torch.where(ours[..., None], vectors.to(embedded.dtype), embedded)

    def insert(self, ids: Sequence[int]) -> tuple[int, ...]:
        """A prompt's ids with those of the soft prompt among them."""
        behind = int(self.position == AFTER_BOS and ids[:1] == (self.bos,))
        return (*ids[:behind], *self.ids, *ids[behind:])

    def insert_rows(self, input_ids: Int[Tensor, "B T"]) -> Int[Tensor, "B W"]:
        """The same of prompts padded on the right."""
        rows = [self.insert(tuple(row)) for row in input_ids.tolist()]
        return torch.tensor(rows, device=input_ids.device)


def soft_prompt_in(model: nn.Module) -> PromptedEmbedding | None:
    """The embedding of a model that was given a soft prompt; None for any other."""
    found = model.get_input_embeddings()  # type: ignore[operator]
    return found if isinstance(found, PromptedEmbedding) else None


def fed(
    embedding: nn.Module, input_ids: Int[Tensor, "B T"], where: Bool[Tensor, "B T"]
) -> tuple[Int[Tensor, "B W"], Bool[Tensor, "B W"]]:
    """What a model is fed for prompts padded on the right: with its soft prompt, where it has one.

    Args:
        embedding: the model's.
        where: positions whose states predict the next token.

    Returns:
        The ids, and the positions that predict the same tokens among them. Both positions of a soft prompt stand before
        a prompt's second token, so that all move by n.
    """
    if not isinstance(embedding, PromptedEmbedding):
        return input_ids, where
    before = where.new_zeros(len(where), len(embedding.prompt))
    return embedding.insert_rows(input_ids), torch.cat([before, where], 1)


def put_prompt(model: nn.Module, prompt: SoftPrompt, name: str = "the model") -> PromptedEmbedding:
    """Give a model a soft prompt, in place.

    Args:
        name: what errors call the model.

    Raises:
        MidblockError: it has another width, has a soft prompt, or looks at ids beside its embedding.
    """
    inner: Any = model.get_input_embeddings()  # type: ignore[operator]
    if isinstance(inner, PromptedEmbedding):
        raise MidblockError(f"{name} has a soft prompt: it takes one")
    weight = inner.weight
    _check_width(prompt, int(weight.shape[1]), name)
    found = PromptedEmbedding(inner, prompt.values.to(weight.device), prompt.position, prompt.bos)
    holders = [(module, key) for module in model.modules() for key, child in module.named_children() if child is inner]
    for module, key in holders:
        setattr(module, key, found)
    try:
        _check_ids(model, found, name)
    except MidblockError:
        for module, key in holders:
            setattr(module, key, inner)
        raise
    return found


def prompted(model: nn.Module, prompt: SoftPrompt, name: str = "the model") -> nn.Module:
    """A model with a soft prompt that shares every weight with the one without.

    Raises:
        MidblockError: as `put_prompt`, or a model that accelerate spread over devices.

    Example:
        >>> with_prompt = prompted(model, SoftPrompt.open("runs/erase/prompt"))
    """
    inner = model.get_input_embeddings()  # type: ignore[operator]
    path = next(path for path, module in model.named_modules() if module is inner).split(".")[:-1]
    clone = _shallow(model)
    at = clone
    for part in path:
        setattr(at, part, _shallow(getattr(at, part)))
        at = getattr(at, part)
    put_prompt(clone, prompt, name)
    return clone


def _shallow(module: nn.Module) -> nn.Module:
    """The module, with a list of children of its own."""
    if "forward" in vars(module):
        raise MidblockError("a model that is spread over devices cannot share its weights", hint="no --device-map")
    found = copy.copy(module)
    for store in STORES:
        vars(found)[store] = copy.copy(vars(module)[store])
    return found


def _check_width(prompt: SoftPrompt, width: int, name: str) -> None:
    if prompt.width != width:
        what = f"the soft prompt has {prompt.width} channels, {name} {width}"
        raise MidblockError(what, hint="it was made for another model")


def _check_ids(model: nn.Module, embedding: PromptedEmbedding, name: str) -> None:
    """Raise MidblockError unless ids give what vectors give, as PEFT feeds them."""
    device = embedding.weight.device
    real = torch.arange(min(TRIED, embedding.first), device=device)[None]
    ids = torch.cat([torch.tensor([embedding.ids], device=device), real], 1)
    try:
        with torch.no_grad():
            ours = model(input_ids=ids, use_cache=False).logits
            theirs = model(inputs_embeds=embedding(ids), use_cache=False).logits
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _refused(f"{name} cannot be given a soft prompt: {reason}") from error
    allowed = max(CLOSE, 4 * torch.finfo(ours.dtype).eps)
    if not bool((ours - theirs).float().norm() <= allowed * theirs.float().norm()):
        raise _refused(f"{name} looks at token ids beside its embedding: a soft prompt would mean another model")


def _refused(what: str) -> MidblockError:
    return MidblockError(what, hint="this architecture takes no soft prompt")
