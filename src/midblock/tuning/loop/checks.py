"""What cannot be asked for: unknown names, numbers out of range, options that exclude each other; one line for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from midblock.base import MidblockError, unknown
from midblock.base.options import LARGEST, check_sizes
from midblock.tuning.anchor.factors import resolve_k
from midblock.tuning.loop.rates import read_rates
from midblock.tuning.losses import LOSSES, Loss
from midblock.tuning.place.methods import METHODS, method_of
from midblock.tuning.settings import ANCHORS, OUTSIDE, PREFIX_CACHE, SCOPES, CourseSettings, Loop

SEEDS = 2**32  # NumPy takes no larger ones, and transformers seeds it
POSITIVE = (
    "lora_r", "lora_scale", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps",
    "max_length", "anchor_lambda", "iw_temperature", "kl_beta", "adam_epsilon", "stm_threshold",
)  # fmt: skip
NOT_NEGATIVE = ("eaft_alpha", "weight_decay", "max_grad_norm", "warmup_steps", "seed")
FINITE = (*POSITIVE, "eaft_alpha", "weight_decay", "warmup_steps", "lora_alpha")
# beyond these nothing is trained any more, it only overflows
AT_MOST = {
    "learning_rate": 100.0, "lora_scale": 1e6, "lora_alpha": 1e6, "weight_decay": 1e3, "anchor_lambda": 1e12,
    "kl_beta": 1e6, "iw_temperature": 1e6, "adam_epsilon": 1e3, "warmup_steps": float(LARGEST),
    "num_train_epochs": float(LARGEST),
}  # fmt: skip


def check_course(settings: CourseSettings, losses: Mapping[str, Loss] = LOSSES) -> None:
    """Check what every verb that trains can be asked for.

    Args:
        losses: that it may be.

    Raises:
        MidblockError: an unknown name, a value out of range, or options that exclude each other.
    """
    method_of(settings)
    for kind, value, options in (
        ("loss", settings.loss, losses),
        ("anchor", settings.anchor, ANCHORS),
        ("anchor scope", settings.anchor_scope, SCOPES),
        ("anchor dtype", settings.anchor_dtype, ("float32", "bfloat16")),
        *(("part for `also`", part, OUTSIDE) for part in settings.also),
    ):
        _check_name(kind, value, options)
    check_sizes(settings)
    _check_numbers(settings, positive=POSITIVE, not_negative=NOT_NEGATIVE, finite=FINITE)
    _check_ranges(settings)
    _check_together(settings)


def check_loop(loop: Loop) -> None:
    """Check how long the loop shall go on and what it shall keep.

    Raises:
        MidblockError: an unknown name, or a value out of range.
    """
    _check_name("prefix cache", loop.prefix_cache, PREFIX_CACHE)
    check_sizes(loop)
    _check_numbers(
        loop,
        positive=("num_train_epochs", "logging_steps"),
        not_negative=("save_steps",),
        finite=("num_train_epochs",),
    )


def _check_name(kind: str, value: str, options: Iterable[str]) -> None:
    if value not in options:
        raise unknown(kind, value, tuple(options))


def _check_numbers(
    settings: Any,
    *,
    positive: Iterable[str],
    not_negative: Iterable[str],
    finite: Iterable[str],
) -> None:
    for name in positive:
        if not getattr(settings, name) > 0:
            raise MidblockError(f"{name} is {getattr(settings, name)}; it must be above 0")
    for name in not_negative:
        if not getattr(settings, name) >= 0:
            raise MidblockError(f"{name} is {getattr(settings, name)}; it must not be negative")
    for name in finite:
        if getattr(settings, name) == float("inf"):
            raise MidblockError(f"{name} is inf; it must be finite")
    for name, most in AT_MOST.items():
        value = getattr(settings, name, None)
        if value is not None and value > most:
            raise MidblockError(f"{name} is {value:g}; it must be at most {most:,.0f}")


def _check_ranges(settings: CourseSettings) -> None:
    if settings.seed >= SEEDS:
        raise MidblockError(f"seed is {settings.seed}; it must be below 2^32")
    for name in ("adam_beta1", "adam_beta2", "lora_dropout"):
        if not 0 <= getattr(settings, name) < 1:
            raise MidblockError(f"{name} is {getattr(settings, name)}; it must lie in [0, 1)")
    if settings.lora_alpha is not None and not settings.lora_alpha > 0:
        raise MidblockError(f"lora_alpha is {settings.lora_alpha}; it must be above 0")
    if settings.rank_budget is not None and settings.rank_budget < 1:
        raise MidblockError(f"rank_budget is {settings.rank_budget}; it must be 1 or more")
    if settings.target_modules is not None and not settings.target_modules.strip():
        raise MidblockError("target_modules names nothing", hint="`attention`, `mlp`, `all`, or leave it out")
    if settings.eaft_top_k < 2:
        raise MidblockError(f"eaft_top_k is {settings.eaft_top_k}; it must be 2 or more")
    if settings.stm_threshold < 1:
        raise MidblockError(f"stm_threshold is {settings.stm_threshold:g}; no perplexity is below 1")
    if settings.lr_by_depth is not None:
        read_rates(settings.lr_by_depth)
    resolve_k(settings.anchor_k, 1, 1)


def _check_together(settings: CourseSettings) -> None:
    if settings.rank_budget is not None and settings.match_parameters is not None:
        raise MidblockError("rank_budget and match_parameters exclude each other")
    for given in _given(settings):
        if given.startswith("anchor_") and settings.anchor == "none":
            raise MidblockError(f"{given} is about an anchor, and there is none", hint="--anchor rpsft")
        losses = [name for name, loss in LOSSES.items() if given in loss.options]
        if losses and settings.loss not in losses:
            what = f"the loss {settings.loss} uses no {given}"
            raise MidblockError(what, hint=f"leave it out, or --loss {losses[0]}")
        methods = [name for name, method in METHODS.items() if given in method.options]
        if methods and settings.method not in methods:
            what = f"{given} is about {METHODS[methods[0]].changes}"
            raise MidblockError(what, hint=f"leave it out, or --method {methods[0]}")


def _given(settings: CourseSettings) -> list[str]:
    """Options that differ from what is taken without them."""
    return [each.name for each in fields(settings) if getattr(settings, each.name) != each.default]
