"""Count sketches: a gradient in a few thousand numbers that keep its inner products with other gradients.

The gradients of K steps are compared with one another, and K copies of all gradients would not fit into memory. A
sketch (Charikar, Chen & Farach-Colton 2002) adds each entry, with a random sign, to one of m buckets. Cost: a pass over
the gradient, m numbers kept. Error and memory: docs/causes/flow.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.distributed.tensor import DTensor

from midblock.base import MidblockError, generator
from midblock.tuning.place.gradients import Gradients

PIECE = 2**22  # entries whose signs are drawn at once

LayerPart = tuple[int, str]  # layer (-1 the embedding, L the head) and part of the block


def sketch(gradient: Float[Tensor, "..."], size: int, draw: np.random.Generator) -> Float[Tensor, "m"]:
    """Sketch a gradient; m = `size`, or its number of entries where it has no more: then it is kept as it is.

    For two gradients a, b sketched from equal generators the inner product of the sketches has the mean a·b and a
    variance of at most (‖a‖²‖b‖² + (a·b)²)/m.

    Args:
        draw: decides signs and buckets; seeded alike for all gradients of one parameter.

    Returns:
        On the CPU, in float32.
    """
    flat = gradient.detach().flatten()
    if len(flat) <= size:
        return flat.to("cpu", torch.float32)
    rows = -(-len(flat) // size)
    # Entry e goes to bucket e mod m, shifted by a random number for each run of m entries. Without the shift, gradients
    # that are large in a few columns (the residual stream has such channels) would meet in a few buckets, for a
    # matrix's width often divides m; with it any two entries meet with a probability of at most 1/m.
    shifts = torch.from_numpy(draw.integers(size, size=rows)).to(flat.device)
    bucket = torch.arange(size, device=flat.device)
    wide = torch.float32 if flat.device.type == "mps" else torch.float64
    total = torch.zeros(size, dtype=wide, device=flat.device)
    step = max(1, PIECE // size)
    for first in range(0, rows, step):
        piece = flat[first * size : (first + step) * size].float()
        # A sign for each entry, not one for each run: gradients are of low rank, so runs are multiples of one another,
        # and one sign for all of a run would leave their products in the sum.
        signed = torch.where(_bits(len(piece), draw).to(flat.device).bool(), piece, -piece)
        runs = torch.nn.functional.pad(signed, (0, -len(signed) % size)).view(-1, size)
        source = (bucket - shifts[first : first + step, None]) % size
        total += runs.gather(1, source).sum(0, dtype=wide)
    return total.to("cpu", torch.float32)


def _bits(count: int, draw: np.random.Generator) -> UInt8[Tensor, "n"]:
    """Random zeros and ones."""
    return torch.from_numpy(np.unpackbits(np.frombuffer(draw.bytes(-(-count // 8)), np.uint8), count=count))


class GradientTrace:
    """Length and sketch of each trained parameter's gradient, step by step.

    Args:
        size: buckets of a sketch.
        seed: of their signs.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.places: Mapping[str, LayerPart] = {}
        self.sketched = 0  # parameters too large to be kept as they are
        self._squares: list[dict[str, float]] = []
        self._sketches: dict[str, list[Tensor]] = {}

    def add(self, gradients: Gradients) -> None:
        """Take a step's gradients.

        Raises:
            MidblockError: they are split over processes, or a parameter has none.
        """
        if any(isinstance(value, DTensor) for value in gradients.trained.values()):
            raise MidblockError("flow looks at whole gradients, these are sharded", hint="one process, or DDP")
        self.places = gradients.places
        self._squares.append(gradients.squares())
        for name, value in gradients.trained.items():
            if value.grad is not None:  # `squares` raises where it is
                kept = sketch(value.grad, self.size, generator(self.seed, "sketch", name))
                self._sketches.setdefault(name, []).append(kept)
        self.sketched = sum(value.numel() > self.size for value in gradients.trained.values())

    def __len__(self) -> int:
        """K, the number of steps."""
        return len(self._squares)

    def grams(self) -> dict[LayerPart, Float[Tensor, "K K"]]:
        """Inner products of the steps' gradients by layer and part, float64; the part "block" is all of a layer."""
        sums: dict[LayerPart, Tensor] = {}
        for name, kept in self._sketches.items():
            layer, part = self.places[name]
            squares = torch.tensor([step[name] for step in self._squares], dtype=torch.float64)
            gram = gram_of(torch.stack(kept), squares)
            for key in {(layer, part): None, (layer, "block"): None}:
                sums[key] = sums[key] + gram if key in sums else gram
        return sums


def gram_of(sketches: Float[Tensor, "K m"], squares: Float[Tensor, "K"]) -> Float[Tensor, "K K"]:
    """Inner products of K vectors: their cosines from sketches, their lengths exact.

    Cosines between sketches lie in [-1, 1] and are 1 for equal vectors, with an error of about (1 − c²)/√m; an inner
    product of sketches over exact lengths would have √((1 + c²)/m), most where vectors agree.

    Args:
        squares: ‖·‖² of each vector, float64.
    """
    # zero vectors stay zero
    directions = torch.nn.functional.normalize(sketches.double(), dim=1, eps=torch.finfo(torch.float64).tiny)
    vectors = directions * squares.sqrt()[:, None]
    gram = vectors @ vectors.T
    return gram.diagonal_scatter(squares)
