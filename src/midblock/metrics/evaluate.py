"""From measured rows to the LayerTable's rows: every metric with its interval, null and noise floor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from midblock.base import Estimate, LayerRow, MidblockError
from midblock.checkpoints import BASE
from midblock.metrics.catalogue import METRICS, NULL, PRECISION_FLOOR, SPLIT_FLOOR
from midblock.metrics.geometry import GEOMETRY_METRICS, distances, geometry
from midblock.metrics.lens import LENS_METRICS
from midblock.metrics.measure import ROUNDED, Measured
from midblock.metrics.similarity import (
    SIMILARITY_METRICS,
    cka_permuted,
    cosine_permuted,
    per_prompt,
    procrustes_permuted,
    similarity,
)
from midblock.metrics.spectra import single_threaded_workers
from midblock.metrics.tokens import TOKEN_METRICS
from midblock.metrics.uncertainty import Folds, bootstrap_means, halves, jackknife, permutations
from midblock.metrics.views import VIEWS, infonce, view_metrics


@dataclass
class Evaluation:
    """Turns the rows of one measuring pass into estimates.

    Attributes:
        models: the tuned models' names.
        wanted: metric names.
        layers: measured layers, ascending.
        blocks: L.
        reference: the dataset, for the table.
        references: whether nulls and split floors are computed too.
    """

    measured: Measured
    models: Sequence[str]
    wanted: frozenset[str]
    layers: Sequence[int]
    blocks: int
    reference: str
    seed: int
    references: bool = True
    means: dict[int, list[tuple[LayerKey, Tensor]]] = field(default_factory=dict)

    def rows(self, advance: Callable[[float], None] = lambda layers: None) -> Iterator[LayerRow]:
        """All rows, layer by layer, then the means, whose intervals are drawn in one go.

        Layers are evaluated side by side, a thread each: matrices of a few hundred rows are too small to share.
        """
        for rows in single_threaded_workers(torch.get_num_threads()).map(self._layer, self.layers):
            yield from rows
            advance(1)
        yield from self._means()

    def _layer(self, layer: int) -> list[LayerRow]:
        rows: list[LayerRow] = []
        for model in (BASE, *self.models):
            rows += self._describe(model, layer)
            self._collect_tokens(model, layer)
        for model in self.models:
            rows += self._compare(model, layer)
        rows += self._precision_floor(layer)
        return rows

    def _describe(self, model: str, layer: int) -> Iterator[LayerRow]:
        """Unpaired metrics of one model at one layer."""
        X = self._pooled(model, layer)
        if X is None:
            return
        wanted = self.wanted & GEOMETRY_METRICS
        if wanted:
            apart = distances(X) if "intrinsic_dimension" in wanted else None
            compute = partial(geometry, X, wanted=wanted, apart=apart)
            yield from self._estimates(model, layer, jackknife(compute, Folds.of(len(X), self.seed)))
            if model == BASE and self.references:
                yield from self._split_floor(layer, compute, len(X))
        if "l2_norm" in self.wanted:
            self._collect(model, layer, "l2_norm", X.norm(dim=1))
        yield from self._views(model, layer)

    def _split_floor(self, layer: int, compute: Callable[..., dict[str, Tensor]], N: int) -> Iterator[LayerRow]:
        """Mean absolute difference between the metrics of two random halves of the prompts."""
        gaps = defaultdict(list)
        for first, second in halves(N, self.seed):
            ours, theirs = compute(first), compute(second)
            for name in ours:
                gaps[name].append(abs(float(ours[name] - theirs[name])))
        for name, gap in gaps.items():
            if name in self.wanted:
                yield self._row(BASE, layer, name + SPLIT_FLOOR, Estimate(sum(gap) / len(gap), *_NONE, N))

    def _compare(self, model: str, layer: int) -> Iterator[LayerRow]:
        """Paired metrics of one tuned model at one layer."""
        base, tuned = self._pooled(BASE, layer), self._pooled(model, layer)
        if base is not None and tuned is not None:
            wanted = self.wanted & SIMILARITY_METRICS
            received = self._received(model, layer)
            folds = Folds.of(len(base), self.seed)
            if wanted:
                estimates = jackknife(lambda keep: similarity(base, tuned, keep, received, wanted), folds)
                yield from self._estimates(model, layer, estimates)
            if self.references:
                yield from self._null(model, layer, base, tuned)
            for name, values in per_prompt(base, tuned).items():
                if name in self.wanted:
                    self._collect(model, layer, name, values)
        for place, name in enumerate(LENS_METRICS):
            lens = self.measured.get(model, "lens", layer)
            if lens is not None and name in self.wanted:
                self._collect(model, layer, name, lens.values[:, place])

    def _received(self, model: str, layer: int) -> Tensor | None:
        """The change that reached this layer from below; the final norm changes the space, so it has none."""
        if layer == self.blocks:
            return None
        base, tuned = self._pooled(BASE, layer - 1), self._pooled(model, layer - 1)
        if layer == -1:
            here = self._pooled(BASE, layer)
            return None if here is None else torch.zeros_like(here)
        return None if base is None or tuned is None else tuned - base

    def _null(self, model: str, layer: int, base: Tensor, tuned: Tensor) -> Iterator[LayerRow]:
        orders = permutations(len(base), self.seed)
        nulls: dict[str, Tensor] = {}
        if not {"cka", "cka_debiased"}.isdisjoint(self.wanted):
            nulls |= cka_permuted(base, tuned, orders)
        if "cosine_similarity" in self.wanted:
            nulls["cosine_similarity"] = cosine_permuted(base, tuned, orders)
        if "cosine_centered" in self.wanted:
            nulls["cosine_centered"] = cosine_permuted(base - base.mean(0), tuned - tuned.mean(0), orders)
        if "procrustes" in self.wanted:
            nulls["procrustes"] = procrustes_permuted(base, tuned, orders[:FEW])
        for name, values in nulls.items():
            if name in self.wanted:
                low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
                yield self._row(model, layer, name + NULL, Estimate(float(values.mean()), low, high, len(base)))

    def _precision_floor(self, layer: int) -> Iterator[LayerRow]:
        rounded = self.measured.get(ROUNDED, "pooled", layer)
        whole = self.measured.get(BASE, "pooled", layer)
        if rounded is None or whole is None:
            return
        base = whole.values[torch.isin(whole.index, rounded.index)]
        received = self._rounding_received(layer, base)
        values = similarity(base, rounded.values, received=received, wanted=self.wanted & SIMILARITY_METRICS)
        values |= {
            name: each.mean()[None] for name, each in per_prompt(base, rounded.values).items() if name in self.wanted
        }
        lens = self.measured.get(ROUNDED, "lens", layer)
        if lens is not None:
            values |= {
                name: lens.values[:, place].mean()[None]
                for place, name in enumerate(LENS_METRICS)
                if name in self.wanted
            }
        for name, value in values.items():
            yield self._row(BASE, layer, name + PRECISION_FLOOR, Estimate(float(value), *_NONE, len(base)))

    def _rounding_received(self, layer: int, here: Tensor) -> Tensor | None:
        """As `_received`, for what rounding changed below."""
        if layer == -1:
            return torch.zeros_like(here)
        rounded, whole = (self.measured.get(model, "pooled", layer - 1) for model in (ROUNDED, BASE))
        if layer == self.blocks or rounded is None or whole is None:
            return None
        return rounded.values - whole.values[torch.isin(whole.index, rounded.index)]

    def _views(self, model: str, layer: int) -> Iterator[LayerRow]:
        found = [self.measured.get(model, f"view{view}", layer) for view in range(VIEWS)]
        if any(view is None for view in found):
            return
        views = torch.stack([view.values for view in found if view is not None])
        if not {"lidar", "dime"}.isdisjoint(self.wanted):
            compute = partial(view_metrics, views)
            estimates = jackknife(compute, Folds.of(views.shape[1], self.seed))
            yield from self._estimates(model, layer, estimates)
            if model == BASE and self.references:
                yield from self._split_floor(layer, compute, views.shape[1])
        if "infonce" in self.wanted:
            self._collect(model, layer, "infonce", infonce(views))

    def _collect_tokens(self, model: str, layer: int) -> None:
        tokens = self.measured.get(model, "tokens", layer)
        for place, name in enumerate(TOKEN_METRICS):
            if tokens is not None and name in self.wanted:
                self._collect(model, layer, name, tokens.values[:, place])

    def _collect(self, model: str, layer: int, metric: str, values: Tensor) -> None:
        self.means.setdefault(len(values), []).append(((layer, model, metric), values))

    def _means(self) -> Iterator[LayerRow]:
        for N in sorted(self.means):
            # Threads came in any order; the table must not depend on it.
            keys, columns = zip(*sorted(self.means[N], key=lambda each: each[0]), strict=True)
            table = torch.stack(columns, dim=1).double()
            for (layer, model, metric), estimate in zip(keys, bootstrap_means(table, self.seed), strict=True):
                yield self._row(model, layer, metric, estimate)
            for (layer, model, metric), values in zip(keys, table.T, strict=True):
                if model == BASE and self.references:
                    splits = halves(len(values), self.seed)
                    gaps = [(values[a[0]].nanmean() - values[b[0]].nanmean()).abs() for a, b in splits]
                    floor = Estimate(float(torch.stack(gaps).mean()), *_NONE, len(values))
                    yield self._row(model, layer, metric + SPLIT_FLOOR, floor)

    def _pooled(self, model: str, layer: int) -> Tensor | None:
        found = self.measured.get(model, "pooled", layer)
        return None if found is None else found.values

    def _estimates(self, model: str, layer: int, estimates: dict[str, Estimate]) -> Iterator[LayerRow]:
        for name, estimate in estimates.items():
            if name in self.wanted:
                yield self._row(model, layer, name, estimate)

    def _row(self, model: str, layer: int, metric: str, estimate: Estimate) -> LayerRow:
        name, _, suffix = metric.partition(".")
        if suffix == "":
            estimate = estimate.within(METRICS[name].bounds)
            _check_defined(model, layer, name, estimate)
        return LayerRow(
            model=model,
            layer=layer,
            blocks=self.blocks,
            metric=metric,
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            n=estimate.n,
            dataset=self.reference,
        )


FEW = 20  # permutations of a metric that takes a decomposition each
LayerKey = tuple[int, str, str]
_NONE = (float("nan"), float("nan"))


def _check_defined(model: str, layer: int, metric: str, estimate: Estimate) -> None:
    """A number that could not be computed is said aloud, unless no prompt has what the metric needs (n = 0)."""
    if estimate.n > 0 and not torch.isfinite(torch.tensor(estimate.value)):
        what = f"{metric} of {model} at layer {layer} is {estimate.value}"
        raise MidblockError(what, hint=f"leave it out of --metrics, or use more prompts (n = {estimate.n})")
