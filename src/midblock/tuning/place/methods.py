"""METHODS: the ways to change a model's weights, and what is different in each.

A new method is a function that makes what is planned trainable, and a row here; the course of training asks the row and
never the name. Described in docs/tuning/layers.md (`lora`), docs/tuning/full.md and docs/carve.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from midblock.base import MidblockError, unknown
from midblock.checkpoints import Checkpoint, LoadSettings
from midblock.tuning.place.adapted import attach_adapters
from midblock.tuning.place.carved import carve_out, open_tuned
from midblock.tuning.place.own_weights import choose_own_weights
from midblock.tuning.place.trainable import Start, Trainable
from midblock.tuning.settings import Carving, CourseSettings, Placement


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to change a model's weights.

    Attributes:
        make: makes what is planned trainable in a causal language model, in place, and freezes the rest.
        opens: what it reads besides the base, by what to call it: looked at before weights are loaded.
        settings: the group of options that it cannot do without; verbs whose settings lack it do not offer it.
        verb: that offers it, where `tune` does not.
        title: in a sentence.
        changes: what it trains, in a sentence.
        on_card: what it trains, on the model card, where it has no ranks.
        options: options that are about it, or about it and others that name them too.
        folder: the result's name in the run folder.
        base_stays: the model keeps the base's own weights, frozen. So they serve as p_ref, may be kept in the precision
            they are stored in, and need no loss that balances their routers.
        library: that loads the result.
        tags: of the model card.
        papers: that the model card names, by their keys there.
    """

    make: Callable[[Start], Trainable]
    title: str
    changes: str
    options: tuple[str, ...]
    folder: str
    base_stays: bool
    library: str
    tags: tuple[str, ...] = ()
    papers: tuple[str, ...] = ()
    opens: Callable[[CourseSettings, LoadSettings], Mapping[str, Checkpoint]] = lambda settings, loading: {}
    settings: type = CourseSettings
    verb: str = "tune"
    on_card: str = "the weights themselves"


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
    "carve": Method(
        make=carve_out,
        title="carving",
        changes="masks over a tuned model's change",
        options=(),
        folder="carrier",
        base_stays=False,
        library="midblock",
        tags=("carrier",),
        papers=("lcdd",),
        opens=open_tuned,
        settings=Carving,
        on_card="channels of the change",
        verb="carve",
    ),
}  # fmt: skip


def method_of(settings: Placement) -> Method:
    """The row of the method that is asked for.

    Raises:
        MidblockError: there is none of that name, or another verb offers it.
    """
    offered = {name: method for name, method in METHODS.items() if isinstance(settings, method.settings)}
    if settings.method in METHODS and settings.method not in offered:
        method = METHODS[settings.method]
        what = f"{method.title} needs more than a base and data"
        raise MidblockError(what, hint=f"midblock {method.verb}")
    if settings.method not in offered:
        raise unknown("method", settings.method, offered)
    return offered[settings.method]
