"""METHODS: the ways to change a model's weights, and what is different in each.

A new method is a function that makes what is planned trainable, and a row here; the course of training asks the row and
never the name. Described in docs/tuning/layers.md (`lora`) and docs/tuning/full.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from midblock.base import LayerPlan
from midblock.tuning.place.adapted import attach_adapters
from midblock.tuning.place.own_weights import choose_own_weights
from midblock.tuning.place.trainable import Trainable
from midblock.tuning.settings import CourseSettings


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to change a model's weights.

    Attributes:
        make: makes what is planned trainable in a causal language model, in place, and freezes the rest.
        title: in a sentence.
        changes: what it trains, in a sentence.
        options: options that are about it, or about it and others that name them too.
        folder: the result's name in the run folder.
        base_stays: the model keeps the base's own weights, frozen. So they serve as p_ref, may be kept in the precision
            they are stored in, and need no loss that balances their routers.
        library: that loads the result.
        tags: of the model card.
        papers: that the model card names, by their keys there.
    """

    make: Callable[[nn.Module, LayerPlan, CourseSettings], Trainable]
    title: str
    changes: str
    options: tuple[str, ...]
    folder: str
    base_stays: bool
    library: str
    tags: tuple[str, ...] = ()
    papers: tuple[str, ...] = ()


METHODS: Mapping[str, Method] = {
    "lora": Method(
        make=attach_adapters,
        title="LoRA",
        changes="adapters",
        options=(
            "lora_r", "lora_scale", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "init_lora_weights",
            "rank_budget", "match_parameters", "load_in_4bit",
        ),
        folder="adapter",
        base_stays=True,
        library="peft",
        tags=("lora",),
        papers=("lora",),
    ),
    "full": Method(
        make=choose_own_weights,
        title="full tuning",
        changes="the model's own weights",
        options=("also",),
        folder="model",
        base_stays=False,
        library="transformers",
    ),
}  # fmt: skip
