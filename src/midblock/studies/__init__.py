"""Grids of the rooms above; `demo` is the smallest one."""

from midblock.studies.demo import demo as demo
