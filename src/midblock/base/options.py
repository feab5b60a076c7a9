"""Keyword arguments to settings dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, overload

from midblock.base.errors import unknown

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
