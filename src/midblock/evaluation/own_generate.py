"""transformers' own `generate`, on rows padded on the left, without what the model's generation config asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import GenerationConfig

from midblock.base import MidblockError


@contextmanager
def plain_generation(model: nn.Module) -> Iterator[None]:
    """Put the model's own generation config aside: transformers fills in from it whatever a caller left open."""
    holders: list[tuple[Any, Any]] = [
        (module, vars(module)["generation_config"]) for module in model.modules() if "generation_config" in vars(module)
    ]
    for module, _ in holders:
        module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for module, config in holders:
            module.generation_config = config


def generated(model: nn.Module, **inputs: Any) -> Any:
    """What transformers' `generate` gives.

    Raises:
        MidblockError: the model cannot be run by it.
    """
    generate: Any = model.generate
    try:
        return generate(**inputs)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = f"{type(model).__name__} does not write with transformers' generate: {reason}"
        raise MidblockError(what, hint="this architecture cannot be asked for answers") from error


def pad_left(rows: Sequence[Sequence[int]], padding: int) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Token ids and attention mask; an answer begins where its row ends, so the padding stands in front."""
    width = max(len(row) for row in rows)
    input_ids = torch.tensor([[padding] * (width - len(row)) + list(row) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    return input_ids, (torch.arange(width)[None, :] >= width - lengths).long()
