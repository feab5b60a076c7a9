"""Opening a pair: references to a base and to models tuned from it in, a checked `Pair` out.

Cost: files are looked at; weights are loaded when they are first needed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from midblock.base import MidblockError
from midblock.base.names import BASE, own_name, own_names
from midblock.checkpoints.checkpoint import Checkpoint, open_checkpoint
from midblock.checkpoints.footprint import own_dtype
from midblock.checkpoints.models import pick_device, pick_dtype
from midblock.checkpoints.pair import Pair, Variant
from midblock.checkpoints.settings import LoadSettings


def load_pair(base: str, *tuned: str, **options: Any) -> Pair:
    """Open a base and the models tuned from it; weights are loaded when they are first needed.

    Args:
        base, tuned: model references (`org/name[@rev]`, a folder, a PEFT adapter, a carrier, `BASE+CARRIER`, a `.gguf`
            file, `builtin:NAME`).
        **options: fields of `LoadSettings` (`dtype`, `device`, `device_map`, `attn_implementation`, …).

    Raises:
        MidblockError: no tuned model, a reference that leads nowhere, or models that differ in depth or width.
    """
    if not tuned:
        raise MidblockError("no tuned model given", hint="midblock analyze BASE TUNED [TUNED…]")
    return load_models(base, *tuned, **options)


def load_models(first: str, *others: str, alike: bool = True, **options: Any) -> Pair:
    """As `load_pair`, but a model may come alone; it then keeps its own name instead of being called "base".

    Args:
        alike: models of other depth or width than the first are refused.

    Raises:
        MidblockError: as `load_pair`.
    """
    settings = LoadSettings.of(options)
    consent: dict[str, Any] = {
        "allow_pickle": settings.allow_pickle,
        "trust_remote_code": settings.trust_remote_code,
    }
    base = open_checkpoint(first, **consent)
    # an adapter goes on the base it is compared with, wherever its config says that lies
    below = None if base.adapter or base.carriers or base.prompt else first
    checkpoints = [base, *(open_checkpoint(reference, adapter_base=below, **consent) for reference in others)]
    settings = _concrete(settings, base)
    names = [BASE, *_names(checkpoints[1:])] if others else [own_name(base.name, "alone")]
    variants = [Variant(name, checkpoint, settings) for name, checkpoint in zip(names, checkpoints, strict=True)]
    pair = Pair(variants[0], tuple(variants[1:]))
    return pair.checked() if alike else pair


def _concrete(settings: LoadSettings, base: Checkpoint) -> LoadSettings:
    """Replace each `auto` by what it means for the base, so that all models of a pair run in the same precision.

    With a device map the device stays `auto`: the map decides.
    """
    if settings.dtype != "auto" and (settings.device != "auto" or settings.device_map is not None):
        return settings
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    name = str(own_dtype(base) if dtype == "auto" else dtype).removeprefix("torch.")
    place = settings.device if settings.device_map is not None else str(device)
    return replace(settings, dtype=name, device=place)


def _names(checkpoints: list[Checkpoint]) -> list[str]:
    return own_names([each.name for each in checkpoints], [each.reference.text for each in checkpoints])
