"""Adapters whose change is in no weight, or cannot be had from their files: what adapter_config.json says of them.

midblock compares, writes and runs models by their weights. Source: PEFT's tuners, and what each one's merge does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BEFORE_THE_TEXT = "puts trained vectors before the text and changes no weight"

# PEFT's types that compute something no weights of the base can hold
TYPES: Mapping[str, str] = {
    "PROMPT_TUNING": f"prompt tuning {BEFORE_THE_TEXT}",
    "MULTITASK_PROMPT_TUNING": f"multitask prompt tuning {BEFORE_THE_TEXT}",
    "P_TUNING": f"p-tuning {BEFORE_THE_TEXT}",
    "CPT": f"context-aware prompt tuning {BEFORE_THE_TEXT}",
    "PREFIX_TUNING": "prefix tuning puts trained keys and values before the text's and changes no weight",
    "CARTRIDGE": "a cartridge puts trained keys and values before the text's and changes no weight",
    "ADAPTION_PROMPT": "an adaption prompt adds attention to trained vectors and changes no weight",
    "XLORA": "X-LoRA mixes its adapters anew for every token",
    "POLY": "Poly mixes its skills by a task that the text does not tell",
    "LILY": "Lily mixes its factors anew for every token",
    "SHADOW": "ShadowPEFT runs a second model beside the base",
}

# options of LoRA of which the same is true
OPTIONS: Mapping[str, str] = {
    "alora_invocation_tokens": "activated LoRA acts only after its invocation tokens",
    "arrow_config": "Arrow chooses among several adapters for every token",
    "layer_replication": "layer replication gives it more blocks than its base has",
}

# starts that took something out of the base's weights which loading cannot find again: it depends on chance or on data
LOST_STARTS = ("pissa_niter", "lora_ga", "corda")


def unmergeable(kind: str, config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Why an adapter cannot be merged into its base's weights, and what to try; None if it can.

    Args:
        kind: PEFT's type, in capitals.
        config: what adapter_config.json says.
    """
    other = "midblock needs a change of the weights: tune with LoRA, say, or evaluate this one with PEFT itself"
    if kind in TYPES:
        return TYPES[kind], other
    if kind not in ("LORA", "ADALORA"):
        return None
    if option := next((name for name in OPTIONS if config.get(name)), None):
        return OPTIONS[option], other
    init = str(config.get("init_lora_weights", "")).lower()
    if init.startswith(LOST_STARTS):
        why = f"its start init_lora_weights={init!r} took out of the base what loading cannot find again"
        return why, "where it was trained, save it with PEFT's path_initial_model_for_weight_conversion, or merge it"
    return None
