"""What a comparison of weights adds up: sums of squares and spectra of every key, and the table's rows made of them.

A key is a layer and a module: `(3, "q_proj")`. Several tensors may share one (experts): their sums add up, so norms
are those of all together; of each matrix's spectral metrics the largest norm and angle is taken, and the mean of the
rest. `attention`, `mlp` and `block` are sums over keys. Cost: nothing beside the metrics themselves.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from midblock.analysis.mixtures import expert_module
from midblock.base import LayerRow, MidblockError
from midblock.checkpoints import LowRankDelta, Projection, Source, exact_rows, part_of
from midblock.checkpoints.projections import Region
from midblock.metrics.catalogue import METRICS, computed_from
from midblock.metrics.metric import Metric
from midblock.metrics.spectra import single_threaded_workers
from midblock.metrics.top_singular import TOLERANCE, is_exact
from midblock.metrics.weights import NO_CHANGE, UNTURNED, WORKERS, Spaces, Spectrum, Sums, sums

GROUPS = ("attention", "mlp")
NOT_IN_BLOCK = {"embedding", "position_embedding", "head"}
DENSE = 1 << 24  # entries that a weight outside the blocks may have to be copied to float64 as a whole

LayerModule = tuple[int, str]


@dataclass(frozen=True)
class Compared:
    """A tensor that is compared.

    Attributes:
        name: as messages call it.
        projection: where it sits.
        region: where in the projection it lies, if it is a piece of it.
        expert: of a matrix that was taken out of the tensor, which of its experts it is.
    """

    name: str
    projection: Projection
    region: Region = ()
    expert: int | None = None

    def parts(self, tensor: Tensor) -> dict[str, Tensor]:
        """Role → its share of the tensor."""
        return self.projection.parts(tensor, self.region)

    @property
    def first_expert(self) -> int:
        """The expert that its first, or only, matrix is."""
        where = self.region[0] if self.region else 0
        return (where if isinstance(where, int) else where[0]) + (self.expert or 0)

    @property
    def block_of_experts(self) -> int | None:
        """The block whose experts it holds weights of; None of what several experts share, or of no experts."""
        of_several = self.projection.stacked and self.projection.shape[0] > 1
        return self.projection.block if of_several else None

    def key(self, role: str) -> LayerModule:
        return self.projection.layer, role

    def in_pieces(self, role: str, tensor: Tensor) -> bool:
        """Whether a share of it is so large that its change is never made as a whole; its spaces are not followed.

        Embeddings and heads, and what else stands outside the blocks (embeddings of every layer: billions of entries).
        """
        return role in NOT_IN_BLOCK or (self.projection.block is None and tensor.numel() > DENSE)


@dataclass(frozen=True)
class WeightTotals:
    """The sums and spectra of one tuned model, compared with its base.

    Attributes:
        tuned: its name.
        blocks: L.
        wanted: names of metrics.
        rank: k of the singular spaces.
        exact: compute whole spectra of any width.
        sums: of every key.
        spectra: for every key, the singular values of each of its matrices' change.
        spaces: for every key in a block, the singular spaces of each of its matrices.
        experts: sums of each expert's weights together, by layer and expert; filled where they are wanted.
        expert_spaces: the singular spaces of each of an expert's matrices, likewise.
        parts: the part of the block that a key belongs to.
        too_wide: names of matrices whose spectrum was left unfinished.
    """

    tuned: str
    blocks: int
    wanted: frozenset[str]
    rank: int
    exact: bool = False
    sums: dict[LayerModule, Sums] = field(default_factory=lambda: defaultdict(Sums))
    spectra: dict[LayerModule, list[Spectrum]] = field(default_factory=lambda: defaultdict(list))
    spaces: dict[LayerModule, list[Spaces]] = field(default_factory=lambda: defaultdict(list))
    experts: dict[tuple[int, int], Sums] = field(default_factory=lambda: defaultdict(Sums))
    expert_spaces: dict[tuple[int, int], list[Spaces]] = field(default_factory=lambda: defaultdict(list))
    parts: dict[LayerModule, str] = field(default_factory=dict)
    too_wide: list[str] = field(default_factory=list)

    @cached_property
    def summed(self) -> Callable[..., Sums]:
        """`sums`, its parts shared out over threads that do not wait for each other."""
        return partial(sums, each=single_threaded_workers(WORKERS).map)

    def add(self, what: Compared, before: Tensor, after: Tensor) -> None:
        """Compare two values of a tensor.

        Raises:
            MidblockError: NaN or Inf in one of them.
        """
        others = what.parts(after)
        for role, part in what.parts(before).items():
            total = self._of_stack(what, part, others[role], changed="changed_fraction" in self.wanted)
            self._count(what, role, total, part)
            if _has_spectrum(part, role):
                for place, (matrix, other) in enumerate(zip(_matrices(part), _matrices(others[role]), strict=True)):
                    each = what if part.ndim == 2 else replace(what, expert=place)
                    self._add_spectra(each, role, matrix, other)

    def add_in_pieces(self, what: Compared, before: Source, after: Source) -> None:
        """Compare two values of a tall matrix of one role, some rows at a time; no rotations.

        Raises:
            MidblockError: NaN or Inf in one of them.
        """
        (role,), total = what.parts(before.stored), Sums()
        for (_, ours), (_, theirs) in zip(exact_rows(before), exact_rows(after), strict=True):
            total += self.summed(ours, theirs, changed="changed_fraction" in self.wanted)
        self._count(what, role, total, before.stored)

        def changes() -> Iterator[Tensor]:
            for (_, ours), (_, theirs) in zip(exact_rows(before), exact_rows(after), strict=True):
                yield theirs - ours

        if self.reads("spectrum"):
            self._note_width(what, before.stored)
            self.spectra[what.key(role)].append(Spectrum.of_changes(changes, before.stored.shape[1], exact=self.exact))

    def add_low_rank(self, what: Compared, before: Tensor, delta: LowRankDelta) -> None:
        """Add a low-rank change of a tensor that has one role, read off its factors; no rotations.

        Raises:
            MidblockError: NaN or Inf in one of them.
        """
        (role,) = what.parts(before)
        change = delta.fro() ** 2
        before_sum = self.summed(before, before, changed=False)
        total = Sums(before_sum.base, change, before.numel() if change else 0, before.numel())
        self._count(what, role, total, before)
        self._count_experts(what, [total])
        if self.reads("spectrum"):
            self.spectra[what.key(role)].append(Spectrum.of_values(delta.singular_values()))

    def add_unchanged(self, what: Compared, before: Tensor) -> None:
        """Add a tensor that is the same in both."""
        for role, part in what.parts(before).items():
            self._count(what, role, self._of_stack(what, part, part, changed=False), part)
            if _has_spectrum(part, role):
                self.spectra[what.key(role)].append(NO_CHANGE)
                if not what.in_pieces(role, part):
                    self.spaces[what.key(role)].append(UNTURNED)

    @property
    def unsettled(self) -> list[float]:
        """Residuals of the matrices whose leading singular values or spaces did not come to stand, largest first."""
        found = [each.residual for several in self.spectra.values() for each in several]
        found += [each.residual for several in self.spaces.values() for each in several]
        return sorted((residual for residual in found if residual > TOLERANCE), reverse=True)

    def reads(self, source: str) -> bool:
        """Whether a metric that is wanted is computed from `weights`, a `spectrum` or `spaces`."""
        return any(METRICS[name].source == source for name in self.wanted)

    @property
    def reads_experts(self) -> bool:
        """Whether single experts have rows."""
        return self.reads("experts") or self.reads("expert_spaces")

    @property
    def follows_spaces(self) -> bool:
        """Whether singular spaces are needed, of modules or of single experts."""
        return self.reads("spaces") or self.reads("expert_spaces")

    def rows(self) -> Iterator[LayerRow]:
        """The table's rows: every key, then the groups."""
        for key, total in self.sums.items():
            for name, metric in METRICS.items():
                if name in self.wanted and (value := self._value(metric, key, total)) is not None:
                    yield self._row(key, name, value, total.count)
        yield from self._rows_by_expert()
        for key, total in self._groups().items():
            for name, metric in METRICS.items():
                if name in self.wanted and metric.source == "weights" and metric.compute is not None:
                    yield self._row(key, name, metric.compute(total), total.count)

    def _rows_by_expert(self) -> Iterator[LayerRow]:
        for (layer, expert), total in sorted(self.experts.items()):
            of_expert: Mapping[str, Sequence[Any]] = {
                "experts": [total],
                "expert_spaces": self.expert_spaces.get((layer, expert), []),
            }
            for source, each in of_expert.items():
                for name in computed_from(source, self.wanted):
                    if (value := _of_several(METRICS[name], each)) is not None:
                        yield self._row((layer, expert_module(expert)), name, value, total.count)

    def _value(self, metric: Metric, key: LayerModule, total: Sums) -> float | None:
        """A metric of a key: of the sums; of matrices the largest or the mean of those for which it is defined."""
        statistics: Mapping[str, Sequence[Any]] = {
            "weights": [total],
            "spectrum": self.spectra.get(key, []),
            "spaces": self.spaces.get(key, []),
        }
        return _of_several(metric, statistics.get(metric.source, []))

    def _groups(self) -> dict[LayerModule, Sums]:
        groups: dict[LayerModule, Sums] = defaultdict(Sums)
        for key, total in self.sums.items():
            layer, part = key[0], self.parts[key]
            if 0 <= layer < self.blocks:
                groups[layer, "block"] += total
                if part in GROUPS:
                    groups[layer, part] += total
        return groups

    def _row(self, key: LayerModule, metric: str, value: float, count: int) -> LayerRow:
        return LayerRow(self.tuned, key[0], self.blocks, metric, value, count, module=key[1])

    def _of_stack(self, what: Compared, before: Tensor, after: Tensor, *, changed: bool) -> Sums:
        """The sums of two values of a tensor; of a stack expert by expert, where each is wanted by itself."""
        if before.ndim < 3 or not self.reads_experts:
            total = self.summed(before, after, changed=changed)
            self._count_experts(what, [total] if before.ndim == 2 else [])
            return total
        each = [self.summed(*both, changed=changed) for both in zip(before, after, strict=True)]
        self._count_experts(what, each)
        return sum(each, Sums())

    def _count_experts(self, what: Compared, each: Sequence[Sums]) -> None:
        if (block := what.block_of_experts) is not None and self.reads_experts:
            for place, total in enumerate(each):
                self.experts[block, what.first_expert + place] += total

    def _count(self, what: Compared, role: str, total: Sums, before: Tensor) -> None:
        if not (math.isfinite(total.base) and math.isfinite(total.change)):
            owner = self.tuned if bool(torch.isfinite(before).all()) else "the base"
            raise MidblockError(f"NaN or Inf in the weight {what.name} of {owner}")
        self.sums[what.key(role)] += total
        self.parts[what.key(role)] = what.projection.part if role == what.projection.role else part_of(role)

    def _add_spectra(self, what: Compared, role: str, before: Tensor, after: Tensor) -> None:
        key, outside = what.key(role), what.in_pieces(role, before)
        if self.reads("spectrum"):
            self._note_width(what, before)
            if outside:  # a float64 copy of these would be the largest thing in memory
                self.spectra[key].append(Spectrum.of_pieces(before, after, exact=self.exact))
            else:
                self.spectra[key].append(Spectrum.of(after.double() - before.double(), exact=self.exact))
        if self.follows_spaces and not outside:
            spaces = Spaces.of(before, after, self.rank, exact=self.exact)
            self.spaces[key].append(spaces)
            if (block := what.block_of_experts) is not None:
                self.expert_spaces[block, what.first_expert].append(spaces)

    def _note_width(self, what: Compared, matrix: Tensor) -> None:
        if not (self.exact or is_exact(min(matrix.shape), 1)):
            self.too_wide.append(what.name)


def _of_several(metric: Metric, statistics: Sequence[Any]) -> float | None:
    """The largest or the mean of those for which the metric is defined; None where there is none."""
    if metric.compute is None:
        return None
    values = [value for each in statistics if (value := metric.compute(each)) is not None]
    if not values:
        return None
    return max(values) if metric.largest else sum(values) / len(values)


def _has_spectrum(part: Tensor, role: str) -> bool:
    return part.ndim >= 2 and role not in ("norm", "bias")


def _matrices(weight: Tensor) -> list[Tensor]:
    """A weight as matrices: itself, or one per expert."""
    return [weight] if weight.ndim == 2 else list(weight.flatten(0, -3))
