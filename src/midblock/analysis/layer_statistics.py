"""What the metrics of one layer are computed from: measured rows, put together as each source of metrics takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from midblock.analysis.evaluated import Column, Key
from midblock.analysis.measure import Measured
from midblock.analysis.mixtures import expert_module
from midblock.analysis.repeats import alike_by_tokens, fewer_states, with_one_state
from midblock.base.clusters import Clusters
from midblock.base.names import BASE
from midblock.metrics.catalogue import METRICS, computed_from, values
from midblock.metrics.geometry import Pooled, States
from midblock.metrics.metric import TOKEN_SOURCES
from midblock.metrics.own_change import OwnChange, OwnChanges
from midblock.metrics.routing import Loads
from midblock.metrics.similarity import Pairing, Pairs, Shuffled
from midblock.metrics.views import VIEWS, Views
from midblock.trace import RowStatistic

OF_MEANS = ("bootstrap", "share")  # intervals of metrics that are means of prompts' values


@dataclass(frozen=True, eq=False)
class Sample:
    """What one model's metrics at one layer are computed from.

    Attributes:
        names: the metrics.
        N: prompts.
        of: from index sets to the statistic.
        shuffled: from orders of the prompts to the statistic of a null; None where there is none.
        tokens: as of `Estimates`.
        clusters: which of the prompts are variants of one question or repeat one another.
        copies: which of them repeat one another.
    """

    model: str
    layer: int
    names: tuple[str, ...]
    N: int
    of: Callable[[Tensor], Any]
    shuffled: Callable[[Tensor], Any] | None = None
    tokens: str = ""
    clusters: Clusters | None = None
    copies: Clusters | None = None

    def by_set(self, keep: Tensor) -> dict[str, Tensor]:
        """Of the metrics with a jackknife, a value for each index set."""
        return values([name for name in self.names if METRICS[name].interval not in OF_MEANS], self.of(keep))

    def by_expert(self, keep: Tensor) -> dict[str, Tensor]:
        """Of the metrics with a row for each expert, a value for each index set, by "METRIC|MODULE"."""
        found = values(self.names, self.of(keep))
        return {
            f"{name}|{expert_module(expert)}": each
            for name, table in found.items()
            for expert, each in enumerate(table.T)
        }

    def by_prompt(self) -> Iterator[Column]:
        """Of the metrics that are plain means, a value for each prompt."""
        names = [name for name in self.names if METRICS[name].interval in OF_MEANS]
        for name, column in values(names, self.of(torch.arange(self.N)[None])).items():
            yield self.key(name), column

    def key(self, metric: str) -> Key:
        """The row of a metric, or of one with a suffix."""
        name, dot, reference = metric.partition(".")
        return Key(self.layer, self.model, name + self.tokens + dot + reference)


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """The measured rows of one pass.

    Attributes:
        models: the tuned models' names.
        wanted: metric names.
        blocks: L.
        tokens: "" for metrics over all tokens, or the suffix of those over others.
        repeats: for each prompt that repeats an earlier one, that one.
        clusters: which prompts are variants of one question or repeat one another, by index; None where none are.
    """

    measured: Measured
    models: Sequence[str]
    wanted: frozenset[str]
    blocks: int
    tokens: str = ""
    repeats: Mapping[int, int] = field(default_factory=dict)
    clusters: Clusters | None = None

    def samples(self, layer: int, alike: dict[str, tuple[int, int]]) -> Iterator[Sample]:
        """What one layer's metrics of prompts' states are computed from.

        Args:
            alike: gets, by model, the number of prompts and of different states, where these are fewer.
        """
        for model in (BASE, *self.models):
            if (pooled := self._pooled(model, layer)) is not None:
                names = computed_from("pooled", self.wanted, paired=False)
                states = States.of(pooled.values)
                if (count := fewer_states(states, len(self.repeats.keys() & set(pooled.index.tolist())))) is not None:
                    alike[model] = len(states.X), count
                N, alike_ones = len(states.X), self._alike(pooled)
                yield Sample(model, layer, names, N, partial(Pooled, states), None, self.tokens, *alike_ones)
            if (stack := self._views(model, layer)) is not None:
                names = computed_from("views", self.wanted)
                alike_ones = self._alike(self.rows("view0", model, layer))
                yield Sample(model, layer, names, stack.shape[1], partial(Views, stack), None, "", *alike_ones)
        for model in self.models:
            if (pairing := self.pairing(model, layer)) is not None:
                names, N = computed_from("pooled", self.wanted, paired=True), len(pairing.base)
                of, shuffled = partial(Pairs, pairing), partial(Shuffled, pairing)
                alike_ones = self._alike(self.rows("pooled", model, layer))
                yield Sample(model, layer, names, N, of, shuffled, self.tokens, *alike_ones)
            if (change := self._own(model, layer)) is not None:
                names, N = computed_from("own", self.wanted), len(change.base)
                alike_ones = self._alike(self.rows("own", model, layer))
                yield Sample(model, layer, names, N, partial(OwnChanges, change), None, self.tokens, *alike_ones)
        for model in (BASE, *self.models):
            if (loads := self.loads(model, layer, by_expert=False)) is not None:
                yield loads

    def loads(self, model: str, layer: int, *, by_expert: bool) -> Sample | None:
        """What a model's expert loads at one layer are computed from, beside the base's; None where there are none."""
        rows = None if self.tokens else self.measured.get(model, "loads", layer)
        base = None if self.tokens else self.measured.get(BASE, "loads", layer)
        named = tuple(
            name
            for name in computed_from("loads", self.wanted)
            if METRICS[name].by_expert == by_expert and not (METRICS[name].paired and model == BASE)
        )
        if rows is None or base is None or not named:
            return None
        beside = None if model == BASE else base.values[torch.isin(base.index, rows.index)]
        of = partial(Loads, rows.values, base=beside)
        return Sample(model, layer, named, len(rows.values), of, None, "", *self._alike(rows))

    def rows(self, source: str, model: str, layer: int) -> RowStatistic | None:
        """The measured rows of a source of metrics, over the tokens that these statistics are about."""
        return self.measured.get(model, source + self.tokens if source in TOKEN_SOURCES else source, layer)

    def clusters_of(self, rows: RowStatistic | None) -> Clusters | None:
        """Which of the prompts that these rows are about are variants of one question or repeat one another."""
        return None if self.clusters is None or rows is None else self.clusters.take(rows.index.numpy())

    def copies_of(self, rows: RowStatistic | None) -> Clusters | None:
        """Which of them repeat one another: no unrelated prompts, and no halves of the data."""
        return None if rows is None else alike_by_tokens(rows.index.tolist(), self.repeats)

    def _alike(self, rows: RowStatistic | None) -> tuple[Clusters | None, Clusters | None]:
        return self.clusters_of(rows), self.copies_of(rows)

    def _views(self, model: str, layer: int) -> Tensor | None:
        """Both augmented views' states; metrics of them are over all tokens alone."""
        views = [self.measured.get(model, f"view{view}", layer) for view in range(VIEWS)]
        found = [view.values for view in views if view is not None and not self.tokens]
        return torch.stack(found).double() if len(found) == VIEWS else None

    def _own(self, model: str, layer: int) -> OwnChange | None:
        """What a block adds to the change, for the token-level prompts; the embedding inherits nothing."""
        if not 0 <= layer < self.blocks:
            return None
        alone = self.rows("own", model, layer)
        base, tuned = (self._raw(name, layer, alone) for name in (BASE, model))
        if alone is None or base is None or tuned is None:
            return None
        below = [self._raw(name, layer - 1, alone) for name in (BASE, model)]
        increment = None
        if below[0] is not None and below[1] is not None:
            increment = (tuned - base) - (below[1] - below[0])
        reverse = self.measured.get(model, f"reverse{self.tokens}", layer)
        return OwnChange(base, alone.values - base, increment, None if reverse is None else tuned - reverse.values)

    def _raw(self, model: str, layer: int, of: RowStatistic | None) -> Tensor | None:
        """A model's pooled states for the prompts of other rows."""
        rows = self.rows("pooled", model, layer)
        return None if rows is None or of is None else rows.values[torch.isin(rows.index, of.index)]

    def pairing(self, model: str, layer: int) -> Pairing | None:
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
        rows = self.rows("pooled", model, layer)
        return None if rows is None else with_one_state(rows, self.repeats)
