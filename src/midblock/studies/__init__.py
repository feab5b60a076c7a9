"""Grids of the rooms above; `demo` is the smallest one.

Nothing is re-exported here, so that a finished study is told again without loading anything heavy.
"""
