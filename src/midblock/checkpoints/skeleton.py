"""The skeleton of a config: the model that transformers would build of it, without weights.

It lies on the meta device: some 25 ms the first time, no memory to speak of. It answers what only the model itself
knows: how its parameters are called in memory, what shape they have, and which module holds them. Source:
transformers' own `AutoModelForCausalLM`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from midblock.base import MidblockError
from midblock.checkpoints.anatomy import Anatomy
from midblock.checkpoints.config import STRANGE, reason_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

KEPT = 8  # skeletons: a run looks at one architecture or two, many times


def skeleton_of(
    config: PretrainedConfig, *, trust_remote_code: bool = False, dtype: torch.dtype | None = None
) -> nn.Module:
    """Build the model of a config on the meta device; the same content gives the same model again.

    Args:
        config: the whole config, of a multimodal model too.
        trust_remote_code: let transformers run code that the checkpoint ships.
        dtype: of its weights; None for the config's own.

    Raises:
        MidblockError: transformers knows no causal language model for it.
    """
    return _build(_Request(_content(config), trust_remote_code, config, dtype))


def planned_types(skeleton: nn.Module, names: Iterable[str], dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The tensors among `names` that transformers keeps in a type of their own where a model is loaded in `dtype`."""
    plan: Any = skeleton._get_dtype_plan(dtype)  # type: ignore[operator]
    kept = [(re.compile(pattern.replace("*", ".*")).search, kind) for pattern, kind in plan.items()]  # as it reads them
    return {name: kind for name in names for search, kind in kept if search(name)}


def like_new(model: nn.Module) -> nn.Module:
    """A model of the same class and config as one that was loaded, on the meta device, as its architecture makes it."""
    config: Any = model.config
    kind: Any = type(model)
    return _of_class(kind, _Request(_content(config), False, config))


@lru_cache(maxsize=KEPT)
def anatomy_of(skeleton: nn.Module) -> Anatomy:
    """The parts of a skeleton, found once.

    Raises:
        MidblockError: a part was not found; the message names it.
    """
    return Anatomy.of(skeleton)


def auto_class(config: Any, *, whole: bool = False) -> Any:
    """The transformers class that builds a config's model: of some multimodal ones, no causal language model alone.

    Args:
        whole: with its towers, also where transformers can build the language model by itself.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    kind = type(config)
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or (kind in MODEL_FOR_CAUSAL_LM_MAPPING and not whole):
        return AutoModelForCausalLM
    return AutoModelForImageTextToText


@dataclass(frozen=True)
class _Request:
    """What is built, told apart by the config's content."""

    content: str
    trust_remote_code: bool
    config: Any = field(compare=False)
    dtype: torch.dtype | None = None


def _content(config: Any) -> str:
    return json.dumps(config.to_dict(), sort_keys=True, default=str)


@lru_cache(maxsize=KEPT)
def _of_class(kind: Any, request: _Request) -> nn.Module:
    with torch.device("meta"):
        made: nn.Module = kind(request.config)
    return made


@lru_cache(maxsize=KEPT)
def _build(request: _Request) -> nn.Module:
    options = {"trust_remote_code": request.trust_remote_code, **({"dtype": request.dtype} if request.dtype else {})}
    try:
        with torch.device("meta"):
            model = auto_class(request.config).from_config(request.config, **options)
    except STRANGE as error:
        what = f"no causal language model for {type(request.config).__name__}: {reason_of(error)}"
        raise MidblockError(what, hint="a value in its config.json does not go with the others") from error
    return model.eval()
