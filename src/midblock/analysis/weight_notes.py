"""What a reader must know of weights that were compared: in which precision, read from which form."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import torch

from midblock.checkpoints import EffectiveTensors, Variant


def precision_note(tuned: str, ours: torch.dtype, theirs: torch.dtype) -> str:
    """That a base and a tuned model are stored in different precision, and what that alone does."""
    base, other = _named(ours), _named(theirs)
    digits = _digits(ours, theirs)
    return f"The base is {base}, {tuned} {other}: rounding alone changes weights by up to 2^-{digits} relative."


def merged_notes(*models: Variant) -> Iterator[str]:
    """That an adapter was merged by PEFT in a coarse type, which rounds what it adds to the base's weights."""
    for each in models:
        if not each.merged_by_peft:
            continue
        kind = next(each.model.parameters()).dtype
        if torch.finfo(kind).eps > torch.finfo(torch.float32).eps:
            yield (
                f"PEFT merges {each.name} in {_named(kind)}, and its weights are read off that: changes below "
                f"2^-{_digits(kind)} of a weight are rounded away, or up; --dtype float32 keeps them."
            )


def _named(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def coded_notes(*models: EffectiveTensors) -> list[str]:
    """What a reader must know of models whose weights are stored as codes."""
    notes = []
    for model in models:
        for kind, count in Counter(codes.kind for codes in model.coded.values()).items():
            grain = (
                f"; rounding alone changes them by up to 2^-{_digits(getattr(torch, kind))} relative"
                if "float8" in kind
                else ""
            )
            notes.append(
                f"{model.name} stores {count} weights as {kind}: compared is what codes and scales mean{grain}."
            )
    return notes


def _digits(*kinds: torch.dtype) -> int:
    return 1 - round(math.log2(max(torch.finfo(kind).eps for kind in kinds)))
