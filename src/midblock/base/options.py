"""Keyword arguments to settings dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from midblock.base.errors import unknown

T = TypeVar("T")


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


def split(cls: type[T], options: Mapping[str, Any]) -> tuple[T, dict[str, Any]]:
    """Take the fields of a settings dataclass out of keyword arguments.

    Returns:
        The settings, and the arguments that are left.

    Raises:
        MidblockError: whatever the dataclass refuses.
    """
    own = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    rest = {name: value for name, value in options.items() if name not in own}
    return cls(**{name: value for name, value in options.items() if name in own}), rest
