"""From measured rows to the LayerTable's rows: every metric with its interval, null and noise floor.

Nothing here knows a metric by name: METRICS says what each is computed from, whether its interval is a bootstrap of
prompts' values or a jackknife over sets of prompts, and which function gives its null.
Cost: each jackknife computes a metric for 21 sets of prompts. What a layer gave is kept until the run is whole, like
the rows of a measuring pass. Formulas: docs/metrics.md, "Uncertainty".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from midblock.analysis.evaluated import Column, Evaluated, Found, Key, SideBySide
from midblock.analysis.layer_statistics import LayerStatistics, Sample
from midblock.analysis.measure import Measured
from midblock.analysis.mixtures import CHOICES
from midblock.analysis.repeats import Alike, alike_by_tokens
from midblock.analysis.undefined import Undefined
from midblock.base import Estimate, LayerRow
from midblock.base.clusters import Clusters
from midblock.base.memory import hand_back
from midblock.base.names import ROUNDED
from midblock.checkpoints import BASE
from midblock.evaluation import TokenMean
from midblock.metrics.catalogue import METRICS, computed_from
from midblock.metrics.kernels import grams_pay
from midblock.metrics.metric import NULL, PRECISION_FLOOR, SPLIT_FLOOR, Metric, is_estimate
from midblock.metrics.similarity import Pairs
from midblock.metrics.uncertainty import Folds, bootstrap_means, halves, jackknife, permutations
from midblock.runs.steps import Step, run_steps
from midblock.trace import RowStore
from midblock.trace.pieces import SAVE_SECONDS

BY_PROMPT = ("tokens", "lens", CHOICES)  # sources that the measuring pass makes a value a prompt of
TOKEN_LEVEL = ("tokens", "lens")  # sources that are measured on some of the prompts only
ROOM = 2**32  # bytes that layers side by side may take for their matrices


@dataclass(frozen=True, eq=False)
class Estimates:
    """Turns the rows of one measuring pass into estimates.

    Attributes:
        models: the tuned models' names.
        tokens: "" for metrics over all tokens, or the suffix of those over others.
        wanted: metric names.
        layers: measured layers, ascending.
        blocks: L.
        reference: the dataset, for the table.
        references: whether nulls and split floors are computed too.
        repeats: for each prompt that repeats an earlier one, that one.
        general: the dataset of general texts, for the table.
        clusters: which prompts are variants of one question or repeat one another, by index; None where none are.
        general_repeats: `repeats` of the general texts.
        undefined: what has no value; filled by `rows`.
        alike: layers at which different prompts have the same state; filled by `rows`.
        partial: folder for what unfinished layers gave, None to keep it in memory only.
        owner: fingerprint of the run and of these rows.
        save_seconds: least time between two pieces.
        dropped: what a reader must know of pieces that were damaged; filled by `rows`.
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
    tokens: str = ""
    general: str = ""
    clusters: Clusters | None = None
    general_repeats: Mapping[int, int] = field(default_factory=dict)
    undefined: Undefined = field(default_factory=Undefined)
    alike: Alike = field(default_factory=Alike)
    partial: Path | None = None
    owner: str = ""
    save_seconds: float = SAVE_SECONDS
    dropped: list[str] = field(default_factory=list)

    @cached_property
    def _statistics(self) -> LayerStatistics:
        return LayerStatistics(
            self.measured, self.models, self.wanted, self.blocks, self.tokens, self.repeats, self.clusters
        )

    def notes(self) -> list[str]:
        """What a reader must know, once `rows` are through."""
        return [*self.dropped, *self.alike.notes(), *self.undefined.notes()]

    def rows(self, advance: Callable[[float], None] = lambda layers: None) -> Iterator[LayerRow]:
        """All rows, layer by layer, then the means, whose intervals are drawn in one go.

        Raises:
            MidblockError: a piece that another run kept, or the disk is full.
        """
        means: list[Column] = []
        for each in self._evaluated(advance):
            means += each.columns
            for model, (N, count) in each.alike.items():
                self.alike.add(model, each.layer, N, count)
            yield from self._defined(each.found)
        yield from self._defined(self._means(means))
        yield from self._defined(self._divergences())

    def _divergences(self) -> Iterator[Found]:
        """KL both ways at the output, per token: sums over counts, whose intervals draw prompts."""
        for source in () if self.tokens else ("heads", "general"):
            name = "kl_answers" if source == "heads" else "kl_general"
            for model in self.models:
                rows = self.measured.get(model, source, self.blocks)
                if rows is None:
                    continue
                clusters = self.clusters
                if source == "general":  # no variants of these prompts' questions
                    clusters = alike_by_tokens(range(int(rows.index.max()) + 1), self.general_repeats)
                forward, backward, counts = rows.values.T
                for metric, sums in ((name, forward), (f"{name}_reverse", backward)):
                    if metric in self.wanted and not bool(counts.any()):  # no prompt has an answer
                        yield Key(self.blocks, model, metric), Estimate(float("nan"), *_NONE, 0)
                    elif metric in self.wanted:
                        mean = TokenMean.of(rows.index, sums, counts.long(), self.seed, clusters=clusters)
                        yield Key(self.blocks, model, metric), mean.interval

    def _evaluated(self, advance: Callable[[float], None]) -> list[Evaluated]:
        """All layers; those that an earlier process got through are read."""
        store, layers = RowStore(), SideBySide(self._layer, self.layers, self._threads())
        steps = [Step(1.0, partial(_put, layers, place, store)) for place in range(len(self.layers))]
        seconds = self.save_seconds
        with closing(layers):
            self.dropped.extend(run_steps(steps, store, self.partial, advance, owner=self.owner, save_seconds=seconds))
        return Evaluated.all_of(store, self.layers)

    def _threads(self) -> int:
        """Layers side by side: as many as threads, but for their N×N matrices."""
        shapes = [rows.values.shape for rows in self.measured.rows.values() if rows.values.ndim == 2]
        N, D = (max((shape[place] for shape in shapes), default=1) for place in (0, 1))
        numbers = 16 * N * D + (4 * N * N if grams_pay(N, D) else 6 * D * D)
        return max(1, min(torch.get_num_threads(), ROOM // (8 * numbers)))

    def _defined(self, found: Iterable[Found]) -> Iterator[LayerRow]:
        """Rows of what has a value; where no prompt has what a metric needs, the row stays and is empty."""
        for key, estimate in found:
            if not self.undefined.takes(key.metric, key.model, key.layer, estimate) or estimate.n == 0:
                yield self._row(key, estimate)

    def _layer(self, layer: int) -> Evaluated:
        made = Evaluated(layer, columns=list(self._columns(layer)))
        for sample in self._statistics.samples(layer, made.alike):
            folds = Folds.of(sample.N, self.seed, clusters=sample.clusters)
            found = jackknife(sample.by_set, folds, {name: METRICS[name].bounds for name in sample.names})
            made.found.extend((sample.key(name), self._told(name, value)) for name, value in found.items())
            made.columns.extend(sample.by_prompt())
            if self.references:
                made.found.extend(self._split_floor(sample) if sample.model == BASE else self._null(sample))
        made.found.extend(self._of_experts(layer))
        made.found.extend(self._precision_floor(layer))
        hand_back()
        return made

    def _of_experts(self, layer: int) -> Iterator[Found]:
        """Metrics with a row for each expert."""
        for model in (BASE, *self.models):
            if (sample := self._statistics.loads(model, layer, by_expert=True)) is not None:
                folds = Folds.of(sample.N, self.seed, clusters=sample.clusters)
                whole = sample.by_expert(folds.whole)
                bounds = {place: METRICS[place.partition("|")[0]].bounds for place in whole}
                for place, estimate in jackknife(sample.by_expert, folds, bounds).items():
                    yield Key(layer, model, *place.split("|")), estimate

    def _told(self, name: str, estimate: Estimate) -> Estimate:
        """Without its interval, where none is defined."""
        return estimate if METRICS[name].interval else Estimate(estimate.value, *_NONE, estimate.n)

    def _columns(self, layer: int) -> Iterator[Column]:
        """Metrics that came out of the measuring pass as a value a prompt."""
        for source in ("tokens",) if self.tokens else BY_PROMPT:
            for model in (BASE, *self.models):
                for name, column in self._measured_columns(source, model, layer):
                    if source == CHOICES and bool(column.isnan().all()):
                        continue  # of routers that cannot be asked, which a note said before the run
                    yield Key(layer, model, name + self.tokens), column

    def _measured_columns(self, source: str, model: str, layer: int) -> Iterator[tuple[str, Tensor]]:
        rows = self.measured.get(model, source + (self.tokens if source == "tokens" else ""), layer)
        names = computed_from(source, self.wanted)
        if rows is not None and names:
            yield from zip(names, rows.values.T, strict=True)

    def _split_floor(self, sample: Sample) -> Iterator[Found]:
        """Mean absolute difference between the metrics of two random halves of the prompts."""
        gaps = defaultdict(list)
        for first, second in halves(sample.N, self.seed, sample.copies):
            ours, theirs = sample.by_set(first), sample.by_set(second)
            for name in ours:
                gaps[name].append(abs(float(ours[name] - theirs[name])))
        for name, gap in gaps.items():
            yield sample.key(name + SPLIT_FLOOR), Estimate(sum(gap) / len(gap), *_NONE, sample.N)

    def _null(self, sample: Sample) -> Iterator[Found]:
        if sample.shuffled is None or (sample.copies is not None and sample.copies.count == 1):
            return
        statistic = sample.shuffled(permutations(sample.N, self.seed, copies=sample.copies))
        for name in sample.names:
            if (null := METRICS[name].null) is not None:
                drawn = null(statistic)
                low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
                yield sample.key(name + NULL), Estimate(float(drawn.mean()), low, high, sample.N)

    def _precision_floor(self, layer: int) -> Iterator[Found]:
        """The paired metrics between the base and itself in the other precision."""
        pairing = self._statistics.pairing(ROUNDED, layer)
        if pairing is None:
            return
        names, N = computed_from("pooled", self.wanted, paired=True), len(pairing.base)
        sample = Sample(ROUNDED, layer, names, N, partial(Pairs, pairing))
        found = sample.by_set(torch.arange(N)[None]) | {key.metric: column for key, column in sample.by_prompt()}
        if not self.tokens:
            found |= dict(self._measured_columns("lens", ROUNDED, layer))
            found |= self._rounded_routing(layer)
        for name, each in found.items():
            yield Key(layer, BASE, name + self.tokens + PRECISION_FLOOR), Estimate(float(each.nanmean()), *_NONE, N)

    def _rounded_routing(self, layer: int) -> dict[str, Tensor]:
        """The same of choices of experts; of a router alone there is none, its input would have to be the base's."""
        of_choices = dict(self._measured_columns(CHOICES, ROUNDED, layer))
        found = {name: column for name, column in of_choices.items() if not METRICS[name].floor_of}
        loads = self._statistics.loads(ROUNDED, layer, by_expert=False)
        if loads is not None:
            by_set = loads.by_set(torch.arange(loads.N)[None])
            found |= {name: value for name, value in by_set.items() if METRICS[name].paired}
        return found

    def _place(self, key: Key) -> tuple[int, int, str]:
        """What rows are ordered by, and columns drawn in: no number may hang on how a model is called, by a bit."""
        return key.layer, (BASE, *self.models).index(key.model), key.metric

    def _means(self, columns: Sequence[Column]) -> Iterator[Found]:
        alike: dict[tuple[int, bool], list[Column]] = defaultdict(list)
        for column in sorted(columns, key=lambda each: self._place(each[0])):
            alike[len(column[1]), _metric_of(column[0]).source in TOKEN_LEVEL].append(column)
        for of in sorted(alike):
            table = torch.stack([column for _, column in alike[of]], dim=1).double()
            keys = [key for key, _ in alike[of]]
            rows = self._rows_of(keys[0])
            clusters = self._statistics.clusters_of(rows)
            shares = [_metric_of(key).interval == "share" for key in keys]
            yield from zip(keys, bootstrap_means(table, self.seed, shares=shares, clusters=clusters), strict=True)
            if self.references:
                yield from self._split_floors_of_means(keys, table, self._statistics.copies_of(rows))

    def _rows_of(self, key: Key) -> RowStatistic | None:
        """The rows that a column was made of."""
        source = _metric_of(key).source
        return self._statistics.rows("view0" if source == "views" else source, key.model, key.layer)

    def _split_floors_of_means(
        self, keys: Sequence[Key], table: Float[Tensor, "N C"], copies: Clusters | None
    ) -> Iterator[Found]:
        splits = halves(len(table), self.seed, copies)
        for key, column in zip(keys, table.T, strict=True):
            if key.model == BASE and splits:
                gaps = [(column[a[0]].nanmean() - column[b[0]].nanmean()).abs() for a, b in splits]
                floor = Estimate(float(torch.stack(gaps).mean()), *_NONE, len(column))
                yield Key(key.layer, key.model, key.metric + SPLIT_FLOOR), floor

    def _row(self, key: Key, estimate: Estimate) -> LayerRow:
        name = key.metric.partition(".")[0]
        if is_estimate(key.metric):
            estimate = estimate.within(METRICS[name].possible(estimate.value))
        return LayerRow(
            model=key.model,
            layer=key.layer,
            blocks=self.blocks,
            metric=key.metric,
            module=key.module,
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            n=estimate.n,
            dataset=self.general if name.startswith("kl_general") else self.reference,
        )


def _metric_of(key: Key) -> Metric:
    return METRICS[key.metric.partition(".")[0]]


def _put(layers: SideBySide, place: int, store: RowStore) -> None:
    layers.take(place).put(store)


_NONE = (float("nan"), float("nan"))
