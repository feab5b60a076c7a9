"""The measuring pass: batches through all models, layer by layer, to one row per prompt; it survives being killed.

Cost: one forward pass a batch and model without the head, and what is kept of it, at most N×L×D numbers a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from midblock.analysis.lens import gather_positions, lens_positions, log_probabilities
from midblock.analysis.prompts import Prompts
from midblock.analysis.rounding import FATAL, rounded, types_of
from midblock.analysis.settings import AnalysisSettings
from midblock.base import MidblockError
from midblock.base.names import BASE, ROUNDED
from midblock.checkpoints import Anatomy, Pair
from midblock.data import Batch
from midblock.metrics.catalogue import choose, columns, computed_from
from midblock.metrics.predictions import Predictions
from midblock.metrics.tokens import Tokens, pooled_mean
from midblock.runs.steps import Step, run_steps
from midblock.trace import RowStatistic, RowStore, reduce_batch
from midblock.trace.pieces import SAVE_SECONDS
from midblock.trace.stream import Reduction

ROUNDED_BASE = -1  # stands for the base in the other precision where models are numbered

Advance = Callable[[float], None]


@dataclass(frozen=True)
class Measured:
    """Finished rows by model, kind ("pooled", "tokens", "lens", "view0", …) and layer.

    Attributes:
        rows: under the keys that `key_of` gives.
        tuned: names of the tuned models.
    """

    rows: Mapping[str, RowStatistic]
    tuned: Sequence[str]

    def get(self, model: str, kind: str, layer: int) -> RowStatistic | None:
        return self.rows.get(key_of(self._numbers[model], kind, layer))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return numbers_of(self.tuned)


def numbers_of(tuned: Iterable[str]) -> dict[str, int]:
    """The number of each model: 0 the base, 1… the tuned models in their order, -1 the base in the other precision."""
    return {ROUNDED: ROUNDED_BASE, **{name: number for number, name in enumerate((BASE, *tuned))}}


def key_of(model: int, kind: str, layer: int) -> str:
    """Where a model's rows stand in the store; no name is part of it, for names come from folders."""
    return f"{kind}|{layer}|{model}"


@dataclass
class Measurement:
    """One pass over all prompts.

    Attributes:
        kinds: what is wanted: any of "pooled", "tokens", "lens", "views", "floor".
        layers: the layers to measure.
        partial: folder for pieces of an unfinished pass, None to keep them in memory only.
        owner: fingerprint of the run; pieces of another one are refused.
        save_seconds: least time between two pieces.
        dropped: what a reader must know of pieces that were damaged.
        lost: why the base could not be run in the other precision; "" while it can.
    """

    pair: Pair
    prompts: Prompts
    settings: AnalysisSettings
    kinds: frozenset[str]
    layers: tuple[int, ...]
    partial: Path | None = None
    owner: str = ""
    save_seconds: float = SAVE_SECONDS
    store: RowStore = field(default_factory=RowStore)
    dropped: list[str] = field(default_factory=list)
    lost: str = ""
    _types: dict[str, torch.dtype] | None = None

    def run(self, advance: Advance = lambda tokens: None) -> Measured:
        """Run what is left to run; `advance` hears how many tokens each batch held.

        Raises:
            MidblockError: activations that are not finite, or a piece that another run kept.
        """
        anatomies = {variant.name: Anatomy.of(variant.model) for variant in self.pair}
        keys = {kind: self._keys(kind) for kind, _ in self._batches()}
        steps = [
            Step(
                batch.input_ids.numel(),
                partial(self._step, kind, batch, anatomies),
                keys[kind],
                tuple(batch.index.tolist()),
            )
            for kind, batch in self._batches()
        ]
        self.dropped += run_steps(
            steps, self.store, self.partial, advance, owner=self.owner, save_seconds=self.save_seconds
        )
        return Measured(self._whole(self.store.finish()), [variant.name for variant in self.pair.tuned])

    def notes(self) -> list[str]:
        """What a reader must know, once it has run."""
        return [*self.dropped, *([f"The precision floor could not be had: {self.lost}."] if self.lost else [])]

    def _keys(self, kind: str) -> tuple[str, ...]:
        """Where every batch of a kind must leave rows; the rounded base may fail."""
        tuned = [variant.name for variant in self.pair.tuned]
        names = {"pooled" if kind == "deep" else kind: [BASE, *tuned]}
        if kind == "deep" and "tokens" in self.kinds:
            names["tokens"] = [BASE, *tuned]
        if kind == "deep" and "lens" in self.kinds:
            names["lens"] = tuned
        models = ((label, self._numbers[name]) for label, of in names.items() for name in of)
        return tuple(key_of(model, label, layer) for label, model in models for layer in self.layers)

    def _whole(self, rows: dict[str, RowStatistic]) -> dict[str, RowStatistic]:
        """The rows, without those of a rounded base that did not get through all of its prompts."""
        deep = sum(len(batch.index) for batch in self.prompts.deep)
        own = {key for key in rows if key.endswith(f"|{ROUNDED_BASE}")}
        short = {key for key in own if len(rows[key].index) < deep}
        if short and not self.lost:
            self.lost = "it failed on some prompts before this run was resumed"
        return {key: found for key, found in rows.items() if not (self.lost and key in own)}

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return numbers_of(variant.name for variant in self.pair.tuned)

    def _batches(self) -> Iterator[tuple[str, Batch]]:
        yield from (("deep", batch) for batch in self.prompts.deep)
        yield from (("pooled", batch) for batch in self.prompts.pooled)
        for view, batches in enumerate(self.prompts.views):
            yield from ((f"view{view}", batch) for batch in batches)

    def _step(self, kind: str, batch: Batch, anatomies: Mapping[str, Anatomy]) -> None:
        mask = batch.region(self.settings.region)
        reductions = {"pooled": pooled_mean}
        deep = kind == "deep"
        if deep and "tokens" in self.kinds:
            names = self._names("tokens")
            reductions["tokens"] = lambda states, mask: columns(names, Tokens(states, mask))
        if deep and "lens" in self.kinds:
            positions = lens_positions(mask, self.settings.lens_positions)
            reductions["lens"] = lambda states, mask: gather_positions(states, positions)
        reduced = {}
        for name, anatomy in anatomies.items():
            reduced[name] = reduce_batch(name, anatomy, batch, mask, self.layers, reductions).rows
        if deep and "floor" in self.kinds and not self.lost:
            rest = {name: reduction for name, reduction in reductions.items() if name != "tokens"}
            if (rows := self._rounded(anatomies[BASE], batch, mask, rest)) is not None:
                reduced[ROUNDED] = rows
        states = {name: self._keep(name, kind, batch, rows) for name, rows in reduced.items()}
        if "lens" in reductions:
            self._compare_predictions(batch, states, anatomies)

    def _rounded(
        self, anatomy: Anatomy, batch: Batch, mask: Tensor, reductions: Mapping[str, Reduction]
    ) -> Mapping[tuple[str, int], Tensor] | None:
        """Rows of the base in the other precision; None where it cannot run in it: a side measurement ends no run."""
        try:
            if self._types is None:
                self._types = types_of(anatomy)
            with rounded(anatomy, self._types):
                return reduce_batch(ROUNDED, anatomy, batch, mask, self.layers, reductions).rows
        except FATAL:
            raise
        except (RuntimeError, TypeError, MidblockError) as error:
            said = error.what if isinstance(error, MidblockError) else str(error) or type(error).__name__
            self.lost = said.strip().splitlines()[0].rstrip(".")
            return None

    def _names(self, source: str) -> tuple[str, ...]:
        """The metrics that this pass computes from one source: the columns of its rows."""
        return computed_from(source, choose(self.settings.metrics))

    def _keep(self, name: str, kind: str, batch: Batch, rows: Mapping[tuple[str, int], Tensor]) -> dict[int, Tensor]:
        """Put rows into the store; the lens's states are only handed back, they are compared and forgotten."""
        states = {}
        for (reduction, layer), values in rows.items():
            if reduction == "lens":
                states[layer] = values
            else:
                label = kind if kind.startswith("view") else reduction
                self.store.update(key_of(self._numbers[name], label, layer), batch.index, values)
        return states

    def _compare_predictions(
        self, batch: Batch, states: Mapping[str, Mapping[int, Tensor]], anatomies: Mapping[str, Anatomy]
    ) -> None:
        top = self.pair.blocks
        compared: dict[str, Tensor] = {}
        for layer in self.layers:
            # The final norm's output is what the last block's state becomes: the same prediction, computed once.
            if layer < top or top - 1 not in self.layers:
                compared = self._compare_layer(
                    {name: by[layer] for name, by in states.items()}, anatomies, layer == top
                )
            for name, values in compared.items():
                self.store.update(key_of(self._numbers[name], "lens", layer), batch.index, values)

    def _compare_layer(
        self, states: Mapping[str, Tensor], anatomies: Mapping[str, Anatomy], normed: bool
    ) -> dict[str, Tensor]:
        read = partial(log_probabilities, normed=normed, vocabulary=self.pair.vocabulary)
        base = read(anatomies[BASE], states[BASE])
        found = {}
        for name, at in states.items():
            if name != BASE:
                # The rounded base is read with the base's own head: only its states are rounded.
                tuned = read(anatomies.get(name, anatomies[BASE]), at).to(base.device)
                found[name] = columns(self._names("lens"), Predictions(base, tuned))
        return found


def is_dispatched(model: nn.Module) -> bool:
    """Whether accelerate has spread the model, so that its parameters cannot simply be exchanged."""
    places = getattr(model, "hf_device_map", None) or {}
    return len(set(places.values())) > 1 or any(value.is_meta for value in model.parameters())


def total_tokens(prompts: Prompts) -> int:
    """Padded tokens of all batches, for a progress bar."""
    groups: Iterable[list[Batch]] = (prompts.deep, prompts.pooled, *prompts.views)
    return sum(batch.input_ids.numel() for batches in groups for batch in batches)
