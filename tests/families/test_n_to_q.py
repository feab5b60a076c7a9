"""Families n to q: see matrix.py."""

from .matrix import share

test_cell = share("n", "q")
