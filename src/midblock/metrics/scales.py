"""Scales: where a bounded number is spread evenly enough for an interval of so and so many standard errors.

A number above a bound is taken by its logarithm, one below by that of the rest, one between two by its log-odds: an
interval never leaves the bounds, and is longer on the side that has room.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

Bounds = tuple[float | None, float | None]
Values = Float64[np.ndarray, " n"]
Map = Callable[[Values], Values]


def scale_of(values: Values, bounds: Bounds) -> tuple[Map, Map]:
    """The way to the scale and the way back; both change nothing where a value lies on a bound or beyond."""
    least, most = bounds
    if (least is not None and not (values > least).all()) or (most is not None and not (values < most).all()):
        return _same, _same
    if least is not None and most is not None:
        return _log_odds(float(least), float(most))
    if least is not None:
        bottom = float(least)
        return (lambda x: np.log(x - bottom)), (lambda y: bottom + np.exp(y))
    if most is not None:
        top = float(most)
        return (lambda x: -np.log(top - x)), (lambda y: top - np.exp(-y))
    return _same, _same


def _log_odds(least: float, most: float) -> tuple[Map, Map]:
    def there(x: Values) -> Values:
        return np.log(x - least) - np.log(most - x)

    def back(y: Values) -> Values:
        return least + (most - least) / (1 + np.exp(-y))

    return there, back


def _same(x: Values) -> Values:
    return x
