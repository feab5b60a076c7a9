"""Families h to l: see matrix.py."""

from .matrix import share

test_cell = share("h", "l")
