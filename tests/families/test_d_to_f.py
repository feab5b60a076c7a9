"""Families d to f: see matrix.py."""

from .matrix import share

test_cell = share("d", "f")
