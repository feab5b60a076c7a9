"""Two checkpoints compared tensor by tensor: what changed, in which block, in which projection; no model is built."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from midblock.base import LayerRow, MidblockError
from midblock.checkpoints import (
    ATTENTION,
    MLP,
    Adapter,
    LowRankDelta,
    Place,
    TensorReader,
    Variant,
    place,
    split_fused,
)
from midblock.metrics.catalogue import METRICS
from midblock.metrics.spectra import single_threaded_workers
from midblock.metrics.weights import (
    DELTA_METRICS,
    EXACT_SIDE,
    NORM_METRICS,
    ROTATION_METRICS,
    WORKERS,
    Sums,
    delta_metrics,
    delta_metrics_in_pieces,
    delta_metrics_of_spectrum,
    rotation_metrics,
    sums,
)

GROUPS: Mapping[str, tuple[str, ...]] = {"attention": ATTENTION, "mlp": MLP}
NOT_IN_BLOCK = {"embedding", "position_embedding", "head"}
BUFFERS = ("inv_freq", "masked_bias", ".attn.bias", ".attention.bias")

HEAD = "lm_head.weight"
LARGEST = {"delta_spectral", "subspace_rotation_max"}
UNCHANGED = {"delta_spectral": 0.0}  # what the spectral metrics say of a weight that an adapter leaves alone
UNTURNED = {"subspace_rotation_max": 0.0, "subspace_rotation_mean": 0.0}


@dataclass(frozen=True)
class ModelTensors:
    """The parameters of a model in memory, tied ones once."""

    parameters: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> ModelTensors:
        return cls({name: value.detach() for name, value in model.named_parameters()})

    @property
    def names(self) -> Sequence[str]:
        return list(self.parameters)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.parameters[name].shape)

    def read(self, name: str) -> Tensor:
        return self.parameters[name].cpu()


Tensors = TensorReader | ModelTensors


@dataclass
class WeightComparison:
    """Comparison of one tuned model's weights with the base's.

    Attributes:
        notes: what a reader must know: tensors in one checkpoint only, vocabularies resized, metrics left out.
    """

    base: Variant
    tuned: Variant
    blocks: int
    wanted: frozenset[str]
    layers: frozenset[int]
    rank: int
    exact: bool = False
    notes: list[str] = field(default_factory=list)
    _sums: dict[Place, Sums] = field(default_factory=lambda: defaultdict(Sums))
    _spectral: dict[Place, list[dict[str, float]]] = field(default_factory=lambda: defaultdict(list))
    _too_wide: int = 0
    _rounding_noted: bool = False
    _sum: Callable[..., Sums] = sums

    def rows(self, advance: Callable[[float], None] = lambda entries: None) -> Iterator[LayerRow]:
        """Read every tensor once and yield the table's rows.

        Args:
            advance: hears how many entries each tensor held.

        Raises:
            MidblockError: tensors of different shape, NaN or Inf (the tensor is named), or nothing in common.
        """
        self._sum = partial(sums, each=single_threaded_workers(WORKERS).map)
        self._read(advance)
        for where, total in self._sums.items():
            yield from self._rows_of(where, total)
        yield from self._group_rows()
        if self._too_wide:
            self.notes.append(
                f"delta_effective_rank is left out for {self._too_wide} tensors whose smaller side is above "
                f"{EXACT_SIDE}, and their singular vectors are randomised; --exact-spectra computes them in full."
            )

    def _read(self, advance: Callable[[float], None]) -> None:
        ours = tensors_of(self.base)
        adapter = self._low_rank_adapter()
        if adapter is not None and isinstance(ours, TensorReader):
            self._read_adapter(ours, adapter, advance)
            return
        theirs = tensors_of(self.tuned)
        tied = bool(getattr(self.base.config, "tie_word_embeddings", False))
        for name, other in match_names(ours.names, theirs.names, self.tuned.name, self.notes):
            where = place(name, self.blocks)
            size = math.prod(ours.shape(name))
            if where.layer not in self.layers or (tied and where.module == "head") or name.endswith(BUFFERS):
                advance(size)
                continue
            first, second = ours.read(name), theirs.read(other)
            self._note_rounding(first.dtype, second.dtype)
            before, after = self._shared(name, first, second)
            if where.module == "embedding" and tied and self._unties(theirs):
                head = Place(self.blocks, "head")
                self._take(HEAD, head, *self._shared(HEAD, before, theirs.read(HEAD)))
                after = theirs.read(other)
            if before.is_floating_point():
                self._take(name, where, before, after)
            else:
                self.notes.append(f"{name} holds {before.dtype}, not floating-point weights, and is left out.")
            advance(size)
        if HEAD in ours.names and HEAD not in theirs.names and not tied:
            self.notes.append(f"{self.tuned.name} has no head of its own, it is tied: the base's is not compared.")

    def _note_rounding(self, ours: torch.dtype, theirs: torch.dtype) -> None:
        """Say once that base and tuned are stored in different precision, and what that alone does."""
        if self._rounding_noted or ours == theirs or not (ours.is_floating_point and theirs.is_floating_point):
            return
        self._rounding_noted = True
        digits = 1 - round(math.log2(max(torch.finfo(ours).eps, torch.finfo(theirs).eps)))
        base, tuned = (str(dtype).removeprefix("torch.") for dtype in (ours, theirs))
        self.notes.append(
            f"The base is {base}, {self.tuned.name} {tuned}: "
            f"rounding alone changes weights by up to 2^-{digits} relative."
        )

    def _unties(self, theirs: Tensors) -> bool:
        """True where tuning gave the model a head of its own: it began as the base's embedding."""
        return HEAD in theirs.names and not getattr(self.tuned.config, "tie_word_embeddings", False)

    def _low_rank_adapter(self) -> Adapter | None:
        """The tuned model's adapter, if its change of this very base can be read off its factors."""
        checkpoint = self.tuned.checkpoint
        if checkpoint is None or checkpoint.adapter is None or self.base.checkpoint is None:
            return None
        same_base = checkpoint.folder.resolve() == self.base.checkpoint.folder.resolve()
        return checkpoint.adapter if same_base and checkpoint.adapter.settings.inexpressible is None else None

    def _shared(self, name: str, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        if before.shape == after.shape:
            return before, after
        vocabulary = place(name, self.blocks).module in ("embedding", "head")
        if vocabulary and before.shape[1:] == after.shape[1:]:
            rows = min(len(before), len(after))
            self.notes.append(f"{name} has {len(before)} rows in the base, {len(after)} in {self.tuned.name}: "
                              f"the first {rows} are compared.")  # fmt: skip
            return before[:rows], after[:rows]
        what = f"{name} is {list(before.shape)} in the base and {list(after.shape)} in {self.tuned.name}"
        raise MidblockError(what, hint="compare models of the same architecture")

    def _take(self, name: str, where: Place, before: Tensor, after: Tensor) -> None:
        parts = split_fused(before, where.module, self.base.config)
        others = split_fused(after, where.module, self.base.config)
        for role, part in parts.items():
            here = Place(where.layer, role)
            total = self._sum(part, others[role], changed="changed_fraction" in self.wanted)
            self._check_finite(name, total, part)
            self._sums[here] += total
            if part.ndim >= 2 and role not in ("norm", "bias"):
                for matrix, other in zip(_matrices(part), _matrices(others[role]), strict=True):
                    self._take_spectra(here, matrix, other)

    def _take_spectra(self, where: Place, before: Tensor, after: Tensor) -> None:
        found: dict[str, float] = {}
        if not DELTA_METRICS.isdisjoint(self.wanted):
            self._too_wide += min(before.shape) > EXACT_SIDE and not self.exact
            if where.module in NOT_IN_BLOCK:  # a float64 copy of these would be the largest thing in memory
                found |= delta_metrics_in_pieces(before, after, exact=self.exact)
            else:
                found |= delta_metrics(after.double() - before.double(), exact=self.exact)
        if not ROTATION_METRICS.isdisjoint(self.wanted) and where.module not in NOT_IN_BLOCK:
            found |= rotation_metrics(before, after, self.rank, exact=self.exact)
        if found:
            self._spectral[where].append(found)

    def _check_finite(self, name: str, total: Sums, before: Tensor) -> None:
        if math.isfinite(total.base) and math.isfinite(total.change):
            return
        owner = self.tuned.name if bool(torch.isfinite(before).all()) else "the base"
        raise MidblockError(f"NaN or Inf in the weight {name} of {owner}")

    def _read_adapter(self, ours: TensorReader, adapter: Adapter, advance: Callable[[float], None]) -> None:
        """A low-rank adapter's change is read off its factors; only rotations need the dense sum."""
        deltas = dict(adapter.deltas(ours))
        saved = dict(adapter.replaced(ours))
        for name in ours.names:
            where = place(name, self.blocks)
            if where.layer not in self.layers or name.endswith(BUFFERS):
                deltas.pop(name, None)
                saved.pop(name, None)
                advance(math.prod(ours.shape(name)))
                continue
            before = ours.read(name)
            if where.module == "embedding" and HEAD in saved and HEAD not in ours:
                self._take(name, Place(self.blocks, "head"), *self._shared(name, before, saved.pop(HEAD)))
            if name in saved:
                after = saved.pop(name)
                if name in deltas:
                    after = after.double() + deltas.pop(name).dense()
                self._take(name, where, *self._shared(name, before, after))
            elif name in deltas:
                self._take_low_rank(name, where, before, deltas.pop(name))
            else:
                self._take_unchanged(where, before)
            advance(before.numel())
        for name in (*deltas, *saved):
            if place(name, self.blocks).layer in self.layers:
                self.notes.append(f"Only {self.tuned.name} has {name}: not compared.")

    def _take_low_rank(self, name: str, where: Place, before: Tensor, delta: LowRankDelta) -> None:
        parts = split_fused(before, where.module, self.base.config)
        if len(parts) > 1 or not ROTATION_METRICS.isdisjoint(self.wanted):
            self._take(name, where, before, before.double() + delta.dense())
            return
        change = delta.fro() ** 2
        before_sum = self._sum(before, before, changed=False)
        total = Sums(before_sum.base, change, before.numel() if change else 0, before.numel())
        self._check_finite(name, total, before)
        self._sums[where] += total
        if not DELTA_METRICS.isdisjoint(self.wanted):
            self._spectral[where].append(delta_metrics_of_spectrum(delta.singular_values()))

    def _take_unchanged(self, where: Place, before: Tensor) -> None:
        for role, part in split_fused(before, where.module, self.base.config).items():
            here = Place(where.layer, role)
            self._sums[here] += self._sum(part, part, changed=False)
            if part.ndim >= 2 and role not in ("norm", "bias"):
                self._spectral[here].append(UNCHANGED if role in NOT_IN_BLOCK else UNCHANGED | UNTURNED)

    def _rows_of(self, where: Place, total: Sums) -> Iterator[LayerRow]:
        values = total.metrics() | _combine(self._spectral.get(where, []))
        for metric in METRICS:
            if metric in self.wanted and metric in values:
                yield self._row(where, metric, values[metric], total.count)

    def _group_rows(self) -> Iterator[LayerRow]:
        groups: dict[Place, Sums] = defaultdict(Sums)
        for where, total in self._sums.items():
            if not 0 <= where.layer < self.blocks:
                continue
            groups[Place(where.layer, "block")] += total
            for group, members in GROUPS.items():
                if where.module in members or where.module == {"attention": "qkv", "mlp": "gate_up"}[group]:
                    groups[Place(where.layer, group)] += total
        for where, total in groups.items():
            for metric, value in total.metrics().items():
                if metric in self.wanted & NORM_METRICS:
                    yield self._row(where, metric, value, total.count)

    def _row(self, where: Place, metric: str, value: float, count: int) -> LayerRow:
        return LayerRow(self.tuned.name, where.layer, self.blocks, metric, value, count, module=where.module)


def _matrices(weight: Tensor) -> list[Tensor]:
    """A weight as matrices: itself, or one per expert."""
    return [weight] if weight.ndim == 2 else list(weight.flatten(0, -3))


def _combine(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One number for a role that several tensors share (experts): the largest norm and angle, the mean of the rest."""
    names = list(dict.fromkeys(name for each in found for name in each))
    combined = {}
    for name in names:
        values = [each[name] for each in found if name in each]
        combined[name] = max(values) if name in LARGEST else sum(values) / len(values)
    return combined


def tensors_of(variant: Variant) -> Tensors:
    """A variant's tensors as it runs: from its checkpoint, or from memory where an adapter was merged in."""
    checkpoint = variant.checkpoint
    if checkpoint is None or checkpoint.adapter is not None:
        return ModelTensors.of(variant.model)
    return checkpoint.tensors()


def match_names(ours: Sequence[str], theirs: Sequence[str], model: str, notes: list[str]) -> Iterator[tuple[str, str]]:
    """Pair the base's tensor names with a tuned model's; a leading wrapper part ("model.") may be missing in one.

    Raises:
        MidblockError: no tensor is in both.
    """
    other = {_bare(name): name for name in theirs}
    pairs = [(name, other.pop(_bare(name))) for name in ours if _bare(name) in other]
    if not pairs:
        raise MidblockError(f"{model} and the base have no tensor name in common", hint=f"e.g. {ours[0]}, {theirs[0]}")
    matched = {name for name, _ in pairs}
    for owner, names in (("the base", [name for name in ours if name not in matched]), (model, list(other.values()))):
        # A tied head is written by some programs and not by others.
        lonely = [name for name in names if not name.startswith("lm_head")]
        if lonely:
            listed = ", ".join(lonely[:3]) + (f" and {len(lonely) - 3} more" if len(lonely) > 3 else "")
            notes.append(f"Only {owner} has {listed}: not compared.")
    yield from pairs


def _bare(name: str) -> str:
    first, _, rest = name.partition(".")
    return rest if first in ("model", "transformer", "gpt_neox", "base_model") else name
