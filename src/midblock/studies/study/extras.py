"""Engines that are optional: imported where they are asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from midblock.base import MidblockError


def extra(module: str, name: str) -> Any:
    """Import an optional package.

    Args:
        name: of the extra that brings it.

    Raises:
        MidblockError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MidblockError(f"--backend {module} needs the package {module}",
                            hint=f'pip install "midblock[{name}]"') from error  # fmt: skip
