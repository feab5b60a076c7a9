"""Families that begin with m: see matrix.py."""

from .matrix import share

test_cell = share("m", "m")
