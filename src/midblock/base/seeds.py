"""One seed, many independent streams: every random choice names what it is for.

A generator drawn for "bootstrap" does not move when another part of the program starts to draw more numbers, so a
resumed or extended run keeps its old figures.
"""

import hashlib

import numpy as np


def derive(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and on every part of `purpose`."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return numpy's generator for one purpose, independent of those for other purposes."""
    return np.random.default_rng(derive(seed, *purpose))
