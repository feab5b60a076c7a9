"""Keyword arguments to settings dataclasses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, overload

from midblock.base.errors import MidblockError, unknown

LARGEST = 2**31  # of anything counted: no model, file or run has more
SEEDS = 2**63

T = TypeVar("T")
T2 = TypeVar("T2")
T3 = TypeVar("T3")


def from_options(cls: type[T], options: Mapping[str, Any]) -> T:
    """Build a settings dataclass from keyword arguments.

    Raises:
        MidblockError: an unknown keyword; the nearest is named.
    """
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for name in options:
        if name not in names:
            raise unknown("option", name, names)
    return cls(**options)


@overload
def divide(options: Mapping[str, Any], first: type[T], second: type[T2], /) -> tuple[T, T2]: ...
@overload
def divide(options: Mapping[str, Any], first: type[T], second: type[T2], third: type[T3], /) -> tuple[T, T2, T3]: ...
def divide(options: Mapping[str, Any], *classes: type) -> tuple[Any, ...]:
    """Give each keyword argument to the settings dataclass that has it, and build them all.

    Args:
        classes: no two of them share a field.

    Raises:
        MidblockError: a keyword that none of them has, the nearest of all is named; or whatever they refuse.
    """
    names = {field.name: cls for cls in classes for field in fields(cls)}
    for name in options:
        if name not in names:
            raise unknown("option", name, names)
    return tuple(cls(**{name: value for name, value in options.items() if names[name] is cls}) for cls in classes)


def check_sizes(settings: object) -> None:
    """Check every whole number of a settings dataclass before anything is made that has its size.

    Raises:
        MidblockError: one is beyond anything that can be counted.
    """
    for field in fields(settings):  # type: ignore[arg-type]
        value, most = getattr(settings, field.name), SEEDS if field.name == "seed" else LARGEST
        if isinstance(value, int) and not -most <= value <= most:
            limit = "2^63" if most == SEEDS else "2^31"
            bound = f"at most {limit}" if value > 0 else f"at least -{limit}"
            raise MidblockError(f"{field.name} is {told_number(value)}; it must be {bound}")


def check_range(settings: object, low: Mapping[str, int], high: Mapping[str, int]) -> None:
    """Raise MidblockError for an option below the least or above the most that it may be."""
    for name, least in low.items():
        if getattr(settings, name) < least:
            raise MidblockError(f"{name} is {told_number(getattr(settings, name))}; it must be {least} or more")
    for name, most in high.items():
        if getattr(settings, name) > most:
            raise MidblockError(f"{name} is {told_number(getattr(settings, name))}; it must be at most {most:,}")


def told_number(value: float) -> str:
    """A number as messages say it; of whole ones with more digits than can be read, the power of ten."""
    if not isinstance(value, int) or abs(value) < 10**40:
        return str(value)
    return f"{'-' if value < 0 else ''}10^{math.floor(math.log10(abs(value)))}"
