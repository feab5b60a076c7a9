"""Layers in words, for notes."""

from __future__ import annotations

from collections.abc import Iterable


def layers_in_words(layers: Iterable[int]) -> str:
    """ "layer 3", "layers -1 to 2, 5"."""
    runs: list[list[int]] = []
    for layer in (ordered := sorted(layers)):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return f"layer{'s' * (len(ordered) > 1)} {', '.join(parts)}"
