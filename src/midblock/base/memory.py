"""Memory that was used for a while, handed back to the system.

glibc keeps what is freed, for each thread apart, in case it is wanted again: after intervals of 20,000 prompts that was
a gigabyte. Cost: milliseconds.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def hand_back() -> None:
    """Have the allocator give free memory back to the system; nothing where it is another than glibc's."""
    _trim()(0)


@cache
def _trim() -> Callable[[int], object]:
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows opens none without a name
        return lambda pad: None
    return trim
