"""A model with PEFT's adapters stepped around: the base that they were put on, without a second copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from midblock.base import MidblockError
from midblock.checkpoints.lora_config import ALTERING_INITS


@contextmanager
def without_adapters(peft_model: nn.Module) -> Iterator[None]:
    """Let the model compute as its base while the `with` lasts.

    Only a flag of each adapted layer is set, and put back. Nothing is merged and `requires_grad` stays (PEFT's own
    `disable_adapter` turns it off), so this may happen within a step, and on sharded models.

    Raises:
        MidblockError: the adapters took something out of the base's weights when they were made (PiSSA, OLoRA), or
            are merged into them: what is left is not the base.
    """
    layers = [module for module in peft_model.modules() if hasattr(module, "_disable_adapters")]
    config = getattr(peft_model, "peft_config", {}).get("default")
    init = str(getattr(config, "init_lora_weights", "")).lower()
    if init.startswith(ALTERING_INITS):
        hint = "another init_lora_weights, or what needs no reference"
        raise MidblockError(f"adapters that start by {init} alter the base's weights, so it cannot be asked", hint=hint)
    if any(getattr(layer, "merged", False) for layer in layers):
        raise MidblockError("the adapters are merged into the base's weights", hint="unmerge them first")
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True  # type: ignore[assignment]
        yield
    finally:
        for layer, state in zip(layers, before, strict=True):
            layer._disable_adapters = state
