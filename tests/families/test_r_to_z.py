"""Families r to z: see matrix.py."""

from .matrix import share

test_cell = share("r", "z")
