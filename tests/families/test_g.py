"""Families that begin with g: see matrix.py."""

from .matrix import share

test_cell = share("g", "g")
