"""What the base's own weights say of each block: how much of their spectra stands out of noise.

Two readings. `spectrum_snr` is that of the program Spectrum (arXiv 2406.06623): the sum of singular values above a
threshold over the sum below it, over the largest one; its threshold is σ(1 + √β) with σ the interquartile range of the
singular values over 1.349, and weights are ranked among those of their own kind. `above_noise` is the share of singular
values above the edge of Marchenko and Pastur, the scale of the noise taken from their median (Gavish and Donoho 2014):
a weight of pure noise has none. Cost: the singular values of every matrix in the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float64
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import rankdata
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.checkpoints.offloaded import held_value

Spectrum = Float64[np.ndarray, " n"]
Shape = tuple[int, int]
IQR = 1.349  # of a normal distribution, in standard deviations


def spectrum_snr(model: nn.Module) -> list[float]:
    """Spectrum's ratio: each weight's rank among those of its kind, 0…1, and of a block the mean over its weights."""
    return _by_block(model, _spectrum_ratio, ranked=True)


def above_noise(model: nn.Module) -> list[float]:
    """Share of singular values above the edge of noise, the mean over a block's weights."""
    return _by_block(model, _share_above, ranked=False)


def _by_block(model: nn.Module, measure: Callable[[Spectrum, Shape], float], *, ranked: bool) -> list[float]:
    anatomy, kinds = Anatomy.of(model), dict[str, dict[int, list[float]]]()
    weights = dict(model.named_parameters())
    for name, where in anatomy.projections.items():
        if where.block is None or name not in weights or weights[name].ndim < 2:
            continue
        stored = held_value(model, name).cpu().double()
        matrices = stored.reshape(-1, *stored.shape[-2:])  # experts are stacked
        ratios = [measure(torch.linalg.svdvals(each).numpy(), _shape(each)) for each in matrices]
        kinds.setdefault(where.role, {}).setdefault(where.block, []).append(float(np.mean(ratios)))
    if not kinds:
        raise MidblockError("no block has a weight matrix")
    found: list[list[float]] = [[] for _ in range(len(anatomy))]
    for by_block in kinds.values():
        values = np.array([np.mean(each) for each in by_block.values()])
        told = (rankdata(values) - 1) / max(1, len(values) - 1) if ranked else values
        for block, value in zip(by_block, told.tolist(), strict=True):
            found[block].append(value)
    return [float(np.mean(each)) if each else float("nan") for each in found]


def _shape(matrix: Tensor) -> Shape:
    return min(matrix.shape), max(matrix.shape)


def _spectrum_ratio(values: Spectrum, shape: Shape) -> float:
    low, high = np.quantile(values, [0.25, 0.75])
    threshold = (high - low) / IQR * (1 + (shape[0] / shape[1]) ** 0.5)
    above = values > threshold
    noise = float(values[~above].sum()) if (~above).any() else 1.0
    return float(values[above].sum() / (noise * values.max())) if noise > 0 and values.max() > 0 else float("nan")


def _share_above(values: Spectrum, shape: Shape) -> float:
    beta = shape[0] / shape[1]
    edge = float(np.median(values)) / median_of_noise(beta) ** 0.5 * (1 + beta**0.5)
    return float((values > edge).mean())


@lru_cache(maxsize=64)
def median_of_noise(beta: float) -> float:
    """Median of the law of Marchenko and Pastur with ratio β ≤ 1 and variance 1."""
    low, high = (1 - beta**0.5) ** 2, (1 + beta**0.5) ** 2

    def density(x: float) -> float:
        return float(np.sqrt(max((high - x) * (x - low), 0.0)) / (2 * np.pi * beta * max(x, 1e-12)))

    return float(brentq(lambda x: quad(density, low, x, limit=200)[0] - 0.5, low, high, xtol=1e-9))
