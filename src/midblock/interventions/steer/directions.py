"""Directions: from a base's and a tuned model's states on the same prompts, what to add behind each block.

With d_i the difference of prompt i's mean states, tuned minus base, N prompts, a block's direction is their mean ("mean
shift"), or its part along the leading principal directions of the d_i. These are not centred: centring would take
out the mean shift itself. All in float64. Cost: a forward pass of both models over the prompts, and an SVD of N × D a
block. Described in docs/causes/steer.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from midblock.base import MidblockError, Progress, Silent, generator, replace_atomically
from midblock.checkpoints import Anatomy, Variant
from midblock.data import Batch
from midblock.metrics.tokens import pooled_mean
from midblock.trace import reduce_batch

KINDS = ("mean_shift", "pca", "random")


@dataclass(frozen=True, eq=False)
class Direction:
    """What is added behind one block.

    Attributes:
        parts: its parts; their sum is what is added at alpha 1.
        explained: share of Σ‖d_i‖² that lies along the parts; NaN where the models do not differ.
        base_norm: mean norm of the base's states there, pooled as the differences are.
    """

    parts: Float64[Tensor, "k D"]
    explained: float
    base_norm: float

    @property
    def vector(self) -> Float64[Tensor, "D"]:
        return self.parts.sum(0)

    @property
    def norm(self) -> float:
        return float(self.vector.norm())


@dataclass(frozen=True, eq=False)
class Directions:
    """A direction for each of the L blocks.

    Attributes:
        kind: a name of `KINDS`.
        n: prompts they were estimated on.
        of: the directions, bottom first.
    """

    kind: str
    n: int
    of: tuple[Direction, ...]

    def __len__(self) -> int:
        return len(self.of)

    @property
    def width(self) -> int:
        """D, the residual stream's width."""
        return self.of[0].parts.shape[1]

    @property
    def components(self) -> int:
        """k, the number of parts."""
        return len(self.of[0].parts)

    def vectors(self, blocks: Iterable[int] | None = None) -> dict[int, Float64[Tensor, "D"]]:
        """What to add, by block: of all blocks, or of those given."""
        return {block: self.of[block].vector for block in (range(len(self)) if blocks is None else blocks)}

    @property
    def tensors(self) -> dict[str, Float64[Tensor, "k D"]]:
        """The parts by block: `layer.6` holds those of block 6."""
        return {f"layer.{block}": direction.parts.contiguous() for block, direction in enumerate(self.of)}

    @property
    def facts(self) -> dict[str, Any]:
        """Everything but the tensors, as plain values."""
        layers = [{"explained": _number(each.explained), "base_norm": each.base_norm} for each in self.of]
        return {"kind": self.kind, "n": self.n, "layers": layers}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Directions:
        """What `tensors` and `facts` were taken from."""
        made = (
            Direction(
                tensors[f"layer.{block}"].double(),
                math.nan if fact["explained"] is None else fact["explained"],
                fact["base_norm"],
            )
            for block, fact in enumerate(facts["layers"])
        )
        return cls(facts["kind"], facts["n"], tuple(made))

    def write(self, path: Path) -> None:
        """Write a safetensors file of the tensors, with the facts."""
        # One entry: safetensors writes several in any order, and the same directions would make different files.
        metadata = {"steer": json.dumps(self.facts)}
        with replace_atomically(path) as temporary:
            save_file(self.tensors, temporary, metadata=metadata)

    @classmethod
    def read(cls, path: Path) -> Directions:
        """Read what `write` wrote.

        Raises:
            MidblockError: nothing is there, or it is something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["steer"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls.of_tensors(tensors, facts)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            what = f"{path} holds no directions of `midblock steer`"
            raise MidblockError(what, hint="give the folder of a finished run") from error


def estimate_directions(
    base: Variant,
    tuned: Variant,
    batches: Sequence[Batch],
    *,
    region: str = "all",
    kind: str = "mean_shift",
    components: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Directions:
    """Run both models over the prompts and find each block's direction.

    Args:
        batches: prompts; each counts once, however long it is.
        region: tokens whose states are averaged ("all", "prompt", "answer"); padding never counts.
        kind: a name of `KINDS`; "random" is the mean shift, turned at random.
        components: k, for "pca".
        seed: decides a random direction.

    Raises:
        MidblockError: states that are not finite, or more components than prompts or channels.
    """
    total = sum(batch.input_ids.numel() for batch in batches)
    advance = (progress or Silent()).phase("estimating directions", 2 * total)
    states = [_pooled(variant, batches, region, advance) for variant in (base, tuned)]
    shifts = states[1] - states[0]
    means = dict(enumerate(shifts.mean(1)))
    if kind == "pca":
        axes = [principal_axes(shift, components) for shift in shifts]
        parts = [(axis @ mean)[:, None] * axis for axis, mean in zip(axes, means.values(), strict=True)]
    else:
        means = turn_at_random(means, seed, "direction") if kind == "random" else means
        axes = parts = [mean[None] for mean in means.values()]
    norms = states[0].norm(dim=2).mean(1).tolist()
    shares = (explained_share(shift, axis) for shift, axis in zip(shifts, axes, strict=True))
    return Directions(kind, shifts.shape[1], tuple(map(Direction, parts, shares, norms)))


def principal_axes(shifts: Float64[Tensor, "N D"], components: int) -> Float64[Tensor, "k D"]:
    """The k leading right singular vectors of the differences, not centred; the mean shift lies on the side of each.

    Raises:
        MidblockError: k exceeds what N differences of D channels can have.
    """
    if components > min(shifts.shape):
        what = (
            f"{components} principal directions cannot be had from {len(shifts)} prompts of {shifts.shape[1]} channels"
        )
        raise MidblockError(what, hint=f"--components {min(shifts.shape)}")
    axes = torch.linalg.svd(shifts, full_matrices=False).Vh[:components]
    return torch.where(axes @ shifts.mean(0) < 0, -1.0, 1.0)[:, None] * axes


def explained_share(shifts: Float64[Tensor, "N D"], axes: Float64[Tensor, "k D"]) -> float:
    """Share of Σ‖d_i‖² along axes orthogonal to each other, of any length; NaN where all d_i are zero."""
    whole, lengths = float(shifts.square().sum()), axes.norm(dim=1)
    unit = axes[lengths > 0] / lengths[lengths > 0, None]
    return float((shifts @ unit.mT).square().sum()) / whole if whole else math.nan


def turn_at_random(
    vectors: Mapping[int, Float64[Tensor, "D"]], seed: int, *purpose: str | int
) -> dict[int, Float64[Tensor, "D"]]:
    """Turn all vectors by one rotation drawn at random: their norms and the angles between them stay.

    Directions of neighbouring blocks are much alike, so what is added at many blocks adds up. Vectors drawn block by
    block would not, and would be a control that is too weak.
    """
    stacked = torch.stack(list(vectors.values())).numpy()
    inside = np.linalg.qr(stacked.T, mode="r")  # r×L: the vectors as seen from an orthonormal frame of their span
    drawn = generator(seed, "steer", *purpose).standard_normal((stacked.shape[1], len(inside)))
    frame, triangle = np.linalg.qr(drawn)
    frame = frame * np.sign(np.diag(triangle))  # without it the frame would not be uniformly distributed
    turned = torch.from_numpy(np.ascontiguousarray((frame @ inside).T))
    return dict(zip(vectors, turned, strict=True))


def _pooled(variant: Variant, batches: Sequence[Batch], region: str, advance: Any) -> Float64[Tensor, "L N D"]:
    """Each prompt's mean state behind each block, prompts in the order of their indices."""
    anatomy = Anatomy.of(variant.model)
    layers = range(len(anatomy))
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for batch in batches:
        reduced = reduce_batch(variant.name, anatomy, batch, batch.region(region), layers, {"pooled": pooled_mean})
        for layer in layers:
            found[layer].append(reduced.rows["pooled", layer])
        advance(batch.input_ids.numel())
    order = torch.argsort(torch.cat([batch.index for batch in batches]), stable=True)
    return torch.stack([torch.cat(found[layer])[order] for layer in layers])


def _number(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return None if math.isnan(value) else value
