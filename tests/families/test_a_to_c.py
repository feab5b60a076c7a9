"""Families a to c: see matrix.py."""

from .matrix import share

test_cell = share("a", "c")
