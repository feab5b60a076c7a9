"""p_ref, for losses that compare with the model before tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, Checkpoint, LoadSettings, load_model, open_checkpoint
from midblock.tuning.loop.scoring import Reference
from midblock.tuning.losses import loss_of
from midblock.tuning.place.methods import method_of
from midblock.tuning.place.prepared import Prepared
from midblock.tuning.settings import CourseSettings


def check_reference(settings: CourseSettings, base: str) -> None:
    """Raise MidblockError where a reference is needed and there is none, or is given and not used."""
    needed = _needed(settings)
    method = method_of(settings)
    if loss_of(settings).teacher and settings.reference is None:
        raise MidblockError(f"--loss {settings.loss} needs a teacher", hint="--reference names a model")
    if needed and not method.base_stays and settings.reference is None:
        raise MidblockError(
            f"--loss {settings.loss} compares with a reference, and {method.title} changes the base itself",
            hint=f"--reference {base} loads it a second time, frozen: its memory once more, and a forward pass a step",
        )
    if settings.reference is not None and not needed:
        raise MidblockError(f"the loss {settings.loss} uses no reference", hint="leave out --reference")


def check_vocabulary(settings: CourseSettings, loading: LoadSettings, base: Checkpoint) -> None:
    """Look at the reference before anything is written or loaded: it is there, and has the base's vocabulary.

    Raises:
        MidblockError: it leads nowhere, or has another vocabulary.
    """
    if settings.reference is not None:
        config: Any = _open(settings.reference, loading).config
        ours: Any = base.config
        _check_sizes(settings.reference, config.get_text_config().vocab_size, ours.get_text_config().vocab_size)


def reference_places(settings: CourseSettings, loading: LoadSettings) -> tuple[Path, ...]:
    """Files and folders that a named reference is read from."""
    return _open(settings.reference, loading).places if settings.reference is not None else ()


def find_reference(
    prepared: Prepared, settings: CourseSettings, loading: LoadSettings, device: torch.device
) -> Reference | None:
    """The base with adapters bypassed, or the model that was named.

    Raises:
        MidblockError: the named model cannot be loaded, or has another vocabulary.
    """
    if not _needed(settings):
        return None
    divergence = loss_of(settings).divergence
    if settings.reference is None:
        return Reference(anatomy=prepared.anatomy, adapted=prepared.model, divergence=divergence)
    dtype = str(next(prepared.causal.parameters()).dtype).removeprefix("torch.")
    named = LoadSettings(
        dtype=dtype,
        device=str(device),
        attn_implementation=loading.attn_implementation,
        allow_pickle=loading.allow_pickle,
        trust_remote_code=loading.trust_remote_code,
    )
    anatomy = Anatomy.of(load_model(_open(settings.reference, loading), named))
    _check_sizes(settings.reference, anatomy.config.vocab_size, prepared.anatomy.config.vocab_size)
    return Reference(anatomy=anatomy, adapted=None, divergence=divergence, teacher=loss_of(settings).teacher)


def _open(reference: str, loading: LoadSettings) -> Checkpoint:
    return open_checkpoint(reference, allow_pickle=loading.allow_pickle, trust_remote_code=loading.trust_remote_code)


def _check_sizes(reference: str, theirs: int, ours: int) -> None:
    if ours != theirs:
        raise MidblockError(f"the reference {reference} has {theirs} tokens, the base {ours}")


def _needed(settings: CourseSettings) -> bool:
    return loss_of(settings).reference or loss_of(settings).divergence
