"""Counts and the nouns behind them."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """`1 block`, `2 blocks`, `1,000 blocks`."""
    return f"{count:,} {noun if count == 1 else f'{noun}s'}"


def blocks_named(plan: object) -> str:
    """`block 3` or `blocks 3-5`, of a plan of layers in its own notation."""
    return f"block{'' if str(plan).isdecimal() else 's'} {plan}"
