"""From measured rows to the LayerTable's rows: every metric with its interval, null and noise floor.

Nothing here knows a metric by name: METRICS says what each is computed from, whether its interval is a bootstrap of
prompts' values or a jackknife over sets of prompts, and which function gives its null.
Cost: each jackknife computes a metric for 21 sets of prompts. Formulas: docs/metrics.md, "Uncertainty".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from midblock.analysis.measure import Measured
from midblock.analysis.repeats import Alike, with_one_state
from midblock.analysis.undefined import Undefined
from midblock.base import Estimate, LayerRow
from midblock.base.names import ROUNDED
from midblock.checkpoints import BASE
from midblock.metrics.catalogue import METRICS, computed_from, values
from midblock.metrics.geometry import Pooled, States
from midblock.metrics.metric import NULL, PRECISION_FLOOR, SPLIT_FLOOR
from midblock.metrics.similarity import Pairing, Pairs, Shuffled
from midblock.metrics.spectra import single_threaded_workers
from midblock.metrics.uncertainty import Folds, bootstrap_means, halves, jackknife, permutations
from midblock.metrics.views import VIEWS, Views
from midblock.trace import RowStatistic


@dataclass(frozen=True)
class Key:
    """Where a row stands; the metric with its suffix, if it has one."""

    layer: int
    model: str
    metric: str


Found = tuple[Key, Estimate]
Column = tuple[Key, Tensor]  # a value a prompt; how many prompts, depends on the metric


@dataclass(frozen=True, eq=False)
class Sample:
    """What one model's metrics at one layer are computed from.

    Attributes:
        names: the metrics.
        N: prompts.
        of: from index sets to the statistic.
        shuffled: from orders of the prompts to the statistic of a null; None where there is none.
    """

    model: str
    layer: int
    names: tuple[str, ...]
    N: int
    of: Callable[[Tensor], Any]
    shuffled: Callable[[Tensor], Any] | None = None

    def by_set(self, keep: Tensor) -> dict[str, Tensor]:
        """Of the metrics with a jackknife, a value for each index set."""
        return values([name for name in self.names if METRICS[name].interval == "jackknife"], self.of(keep))

    def by_prompt(self) -> Iterator[Column]:
        """Of the metrics that are plain means, a value for each prompt."""
        names = [name for name in self.names if METRICS[name].interval == "bootstrap"]
        for name, column in values(names, self.of(torch.arange(self.N)[None])).items():
            yield self.key(name), column

    def key(self, metric: str) -> Key:
        return Key(self.layer, self.model, metric)


@dataclass(frozen=True, eq=False)
class Estimates:
    """Turns the rows of one measuring pass into estimates.

    Attributes:
        models: the tuned models' names.
        wanted: metric names.
        layers: measured layers, ascending.
        blocks: L.
        reference: the dataset, for the table.
        references: whether nulls and split floors are computed too.
        repeats: for each prompt that repeats an earlier one, that one.
        undefined: what has no value; filled by `rows`.
        alike: layers at which different prompts have the same state; filled by `rows`.
    """

    measured: Measured
    models: Sequence[str]
    wanted: frozenset[str]
    layers: Sequence[int]
    blocks: int
    reference: str
    seed: int
    references: bool = True
    repeats: Mapping[int, int] = field(default_factory=dict)
    undefined: Undefined = field(default_factory=Undefined)
    alike: Alike = field(default_factory=Alike)

    def notes(self) -> list[str]:
        """What a reader must know, once `rows` are through."""
        return [*self.alike.notes(), *self.undefined.notes()]

    def rows(self, advance: Callable[[float], None] = lambda layers: None) -> Iterator[LayerRow]:
        """All rows, layer by layer, then the means, whose intervals are drawn in one go.

        Layers are evaluated side by side, a thread each: matrices of a few hundred rows are too small to share.
        """
        means: list[Column] = []
        for found, columns in single_threaded_workers(torch.get_num_threads()).map(self._layer, self.layers):
            means += columns
            yield from self._defined(found)
            advance(1)
        yield from self._defined(self._means(means))

    def _defined(self, found: Iterable[Found]) -> Iterator[LayerRow]:
        """Rows of what has a value; where no prompt has what a metric needs, the row stays and is empty."""
        for key, estimate in found:
            if not self.undefined.takes(key.metric, key.model, key.layer, estimate) or estimate.n == 0:
                yield self._row(key, estimate)

    def _layer(self, layer: int) -> tuple[list[Found], list[Column]]:
        found: list[Found] = []
        columns = list(self._columns(layer))
        for sample in self._samples(layer):
            folds = Folds.of(sample.N, self.seed)
            found += ((sample.key(name), value) for name, value in jackknife(sample.by_set, folds).items())
            columns += sample.by_prompt()
            if self.references:
                found += self._split_floor(sample) if sample.model == BASE else self._null(sample)
        return found + list(self._precision_floor(layer)), columns

    def _samples(self, layer: int) -> Iterator[Sample]:
        for model in (BASE, *self.models):
            if (pooled := self._pooled(model, layer)) is not None:
                names = computed_from("pooled", self.wanted, paired=False)
                states = States.of(pooled.values)
                self.alike.look(model, layer, states, len(self.repeats.keys() & set(pooled.index.tolist())))
                yield Sample(model, layer, names, len(states.X), partial(Pooled, states))
            views = [self.measured.get(model, f"view{view}", layer) for view in range(VIEWS)]
            found = [view.values for view in views if view is not None]
            if len(found) == VIEWS:
                stack = torch.stack(found).double()
                yield Sample(model, layer, computed_from("views", self.wanted), stack.shape[1], partial(Views, stack))
        for model in self.models:
            if (pairing := self._pairing(model, layer)) is not None:
                names, N = computed_from("pooled", self.wanted, paired=True), len(pairing.base)
                yield Sample(model, layer, names, N, partial(Pairs, pairing), partial(Shuffled, pairing))

    def _pairing(self, model: str, layer: int) -> Pairing | None:
        """The model's states beside the base's, with what reached them from below.

        The final norm changes the space, so nothing is received there.
        """
        both = self._both(model, layer)
        if both is None:
            return None
        received = None
        if layer == -1:
            received = torch.zeros_like(both[0])
        elif layer < self.blocks and (below := self._both(model, layer - 1)) is not None:
            received = below[1] - below[0]
        return Pairing.of(*both, received)

    def _both(self, model: str, layer: int) -> tuple[Tensor, Tensor] | None:
        """Pooled states of the base and of a model, for the prompts that the model has."""
        base, other = (self._pooled(each, layer) for each in (BASE, model))
        if base is None or other is None:
            return None
        return base.values[torch.isin(base.index, other.index)], other.values

    def _pooled(self, model: str, layer: int) -> RowStatistic | None:
        rows = self.measured.get(model, "pooled", layer)
        return None if rows is None else with_one_state(rows, self.repeats)

    def _columns(self, layer: int) -> Iterator[Column]:
        """Metrics that came out of the measuring pass as a value a prompt."""
        for source in ("tokens", "lens"):
            for model in (BASE, *self.models):
                for name, column in self._measured_columns(source, model, layer):
                    yield Key(layer, model, name), column

    def _measured_columns(self, source: str, model: str, layer: int) -> Iterator[tuple[str, Tensor]]:
        rows = self.measured.get(model, source, layer)
        if rows is not None:
            yield from zip(computed_from(source, self.wanted), rows.values.T, strict=True)

    def _split_floor(self, sample: Sample) -> Iterator[Found]:
        """Mean absolute difference between the metrics of two random halves of the prompts."""
        gaps = defaultdict(list)
        for first, second in halves(sample.N, self.seed):
            ours, theirs = sample.by_set(first), sample.by_set(second)
            for name in ours:
                gaps[name].append(abs(float(ours[name] - theirs[name])))
        for name, gap in gaps.items():
            yield sample.key(name + SPLIT_FLOOR), Estimate(sum(gap) / len(gap), *_NONE, sample.N)

    def _null(self, sample: Sample) -> Iterator[Found]:
        if sample.shuffled is None:
            return
        statistic = sample.shuffled(permutations(sample.N, self.seed))
        for name in sample.names:
            if (null := METRICS[name].null) is not None:
                drawn = null(statistic)
                low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
                yield sample.key(name + NULL), Estimate(float(drawn.mean()), low, high, sample.N)

    def _precision_floor(self, layer: int) -> Iterator[Found]:
        """The paired metrics between the base and itself in the other precision."""
        pairing = self._pairing(ROUNDED, layer)
        if pairing is None:
            return
        names, N = computed_from("pooled", self.wanted, paired=True), len(pairing.base)
        sample = Sample(ROUNDED, layer, names, N, partial(Pairs, pairing))
        found = sample.by_set(torch.arange(N)[None]) | {key.metric: column for key, column in sample.by_prompt()}
        found |= dict(self._measured_columns("lens", ROUNDED, layer))
        for name, each in found.items():
            yield Key(layer, BASE, name + PRECISION_FLOOR), Estimate(float(each.mean()), *_NONE, N)

    def _place(self, key: Key) -> tuple[int, int, str]:
        """What rows are ordered by, and columns drawn in: no number may hang on how a model is called, by a bit."""
        return key.layer, (BASE, *self.models).index(key.model), key.metric

    def _means(self, columns: Sequence[Column]) -> Iterator[Found]:
        by_count: dict[int, list[Column]] = defaultdict(list)
        for column in sorted(columns, key=lambda each: self._place(each[0])):
            by_count[len(column[1])].append(column)
        for N in sorted(by_count):
            table = torch.stack([column for _, column in by_count[N]], dim=1).double()
            keys = [key for key, _ in by_count[N]]
            yield from zip(keys, bootstrap_means(table, self.seed), strict=True)
            if self.references:
                yield from self._split_floors_of_means(keys, table)

    def _split_floors_of_means(self, keys: Sequence[Key], table: Float[Tensor, "N C"]) -> Iterator[Found]:
        splits = halves(len(table), self.seed)
        for key, column in zip(keys, table.T, strict=True):
            if key.model == BASE:
                gaps = [(column[a[0]].nanmean() - column[b[0]].nanmean()).abs() for a, b in splits]
                floor = Estimate(float(torch.stack(gaps).mean()), *_NONE, len(column))
                yield Key(key.layer, key.model, key.metric + SPLIT_FLOOR), floor

    def _row(self, key: Key, estimate: Estimate) -> LayerRow:
        name, _, suffix = key.metric.partition(".")
        if suffix == "":
            estimate = estimate.within(METRICS[name].bounds)
        return LayerRow(
            model=key.model,
            layer=key.layer,
            blocks=self.blocks,
            metric=key.metric,
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            n=estimate.n,
            dataset=self.reference,
        )


_NONE = (float("nan"), float("nan"))
