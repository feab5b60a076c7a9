"""One batch through all models of a pair, each layer reduced to rows as it passes: nothing is kept, nothing is summed.

The base goes first and its states are held while the batch is looked at, because two things need them: which tokens
are sinks is known only behind the last block, and a tuned block's own change is what it makes of the base's states.
Cost: a forward pass a model without the head; with "own", one more of the tuned blocks on the token-level prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from midblock.analysis.heads import divergences, predicting
from midblock.analysis.lens import gather_positions, lens_positions, log_probabilities, read_logits
from midblock.analysis.rounding import FATAL, rounded, types_of
from midblock.analysis.routing_rows import RoutingRows
from midblock.analysis.settings import AnalysisSettings
from midblock.base import MidblockError
from midblock.base.names import BASE, ROUNDED
from midblock.checkpoints import Anatomy
from midblock.data import Batch
from midblock.metrics.catalogue import choose, columns, computed_from
from midblock.metrics.metric import NO_SINKS
from midblock.metrics.predictions import Predictions
from midblock.metrics.sinks import read_rule, sink_tokens, token_norms, without_sinks
from midblock.metrics.tokens import Tokens, pooled_mean, pooled_means
from midblock.trace import HeldStates, Reduction, hold_states, reduce_batch, reduce_states
from midblock.trace.routing import Mixtures

Reduced = dict[tuple[str, int], Tensor]  # by reduction and layer
Masks = Mapping[str, Tensor]  # tokens that count, by suffix of the metrics over them; all of them first


@dataclass(frozen=True, eq=False)
class Found:
    """Rows of some prompts of a batch.

    Attributes:
        kind: what they are: "pooled", "tokens", "own", "lens", "heads", …, with a suffix where sinks are left out.
        index: the prompts.
    """

    model: str
    kind: str
    layer: int
    index: Tensor
    values: Tensor


@dataclass(eq=False)
class BatchPass:
    """The models, and what is wanted of each batch.

    Attributes:
        anatomies: by name, the base first.
        kinds: as of `Measurement`.
        layers: the layers to measure.
        vocabulary: number of token ids that all models share.
        rounded: the prompts, by index, on which the base is run in the other precision.
        lost: why the base could not be run in the other precision; "" while it can.
        mixtures: experts and routers by model; empty where none are read.
    """

    anatomies: Mapping[str, Anatomy]
    settings: AnalysisSettings
    kinds: frozenset[str]
    layers: tuple[int, ...]
    vocabulary: int
    rounded: frozenset[int] = frozenset()
    lost: str = ""
    mixtures: Mapping[str, Mixtures] = field(default_factory=dict)
    _types: dict[str, torch.dtype] | None = None

    @property
    def top(self) -> int:
        """L, the layer of what the final norm puts out."""
        return len(self.anatomies[BASE])

    def rows(self, kind: str, batch: Batch) -> Iterator[Found]:
        """What a batch gives.

        Args:
            kind: "deep" for prompts with token-level metrics, "pooled" for others, "viewN" or "general".

        Raises:
            MidblockError: activations that are not finite.
        """
        if kind == "general":
            yield from self._general(batch)
        elif kind.startswith("view"):
            yield from self._view(kind, batch)
        else:
            yield from self._prompts(batch, deep=kind == "deep")

    def _view(self, kind: str, batch: Batch) -> Iterator[Found]:
        mask = batch.region(self.settings.region)
        for name, anatomy in self.anatomies.items():
            found = reduce_batch(name, anatomy, batch, mask, self.layers, {kind: pooled_mean})
            for (_, layer), values in found.rows.items():
                yield Found(name, kind, layer, batch.index, values)

    def _prompts(self, batch: Batch, *, deep: bool) -> Iterator[Found]:
        base, mask = self.anatomies[BASE], batch.region(self.settings.region)
        routing = RoutingRows(self.mixtures, self._names("routers"))
        with routing.reading(BASE):
            held = hold_states(base, batch.input_ids, calls=deep and "own" in self.kinds)
        sinks = self._sinks(batch, held)
        if sinks is not None:
            yield Found(BASE, "sinks", -1, batch.index, self._places(sinks))
        masks: dict[str, Tensor] = {"": mask}
        if sinks is not None and bool((mask & sinks).any()):
            masks[NO_SINKS] = without_sinks(mask, sinks)
        having = (mask & sinks).any(1) if sinks is not None else torch.zeros(len(mask), dtype=torch.bool)
        states: dict[str, Reduced] = {}
        for name, found in self._through_all(batch, held, masks, routing, deep=deep):
            states[name] = {place: values for place, values in found.items() if place[0] in ("lens", "heads")}
            rest = {place: values for place, values in found.items() if place not in states[name]}
            yield from self._found(name, batch, rest, tuple(masks), having)
        for name, kind, block, rows in routing.rows(mask):
            if block in self.layers:
                yield Found(name, kind, block, batch.index, rows)
        if deep and "lens" in self.kinds:
            yield from self._lens(batch, states)
        if deep and "heads" in self.kinds:
            at = {name: found["heads", self.top] for name, found in states.items() if name != ROUNDED}
            kept = predicting(batch, self.settings.answer_positions, region="answer")[1]
            yield from self._heads("heads", batch, kept, at)

    def _found(
        self, name: str, batch: Batch, rows: Reduced, suffixes: Sequence[str], having: Tensor
    ) -> Iterator[Found]:
        """Rows of each set of tokens; without sinks, of the prompts that have one: the others' are those over all."""
        for (label, layer), values in rows.items():
            for suffix, of_set in zip(suffixes, values.unbind(1), strict=True):
                kept = having if suffix else torch.ones_like(having)
                if layer in self.layers:
                    yield Found(name, label + suffix, layer, batch.index[kept], of_set[kept])

    def _through_all(
        self, batch: Batch, held: HeldStates, masks: Masks, routing: RoutingRows, *, deep: bool
    ) -> Iterator[tuple[str, Reduced]]:
        """What each model's states come to, the base's in the other precision last."""
        reductions, mask = self._reductions(batch, masks, deep=deep), masks[""]
        layers = sorted({*self.layers, *([self.top] if "heads" in reductions else [])})
        yield BASE, self._reduce_held(BASE, held, batch, mask, layers, reductions)
        for name, anatomy in self.anatomies.items():
            if name == BASE:
                continue
            if deep and "reverse" in self.kinds:
                with routing.reading(name):
                    theirs = hold_states(anatomy, batch.input_ids, calls=True)
                rows = self._reduce_held(name, theirs, batch, mask, layers, reductions)
                rows |= self._alone("reverse", name, theirs, self.anatomies[BASE], batch, masks)
            else:
                with routing.reading(name):
                    rows = dict(reduce_batch(name, anatomy, batch, mask, layers, reductions).rows)
            if deep and "own" in self.kinds:
                rows |= self._alone("own", name, held, anatomy, batch, masks)
            yield name, rows
        if deep and "floor" in self.kinds and not self.lost and self.rounded.issuperset(batch.index.tolist()):
            rest = {label: each for label, each in reductions.items() if label.startswith(("pooled", "lens"))}
            if (rounded_rows := self._rounded(batch, mask, rest, routing)) is not None:
                yield ROUNDED, rounded_rows

    def _reduce_held(
        self,
        name: str,
        held: HeldStates,
        batch: Batch,
        mask: Tensor,
        layers: list[int],
        reductions: Mapping[str, Reduction],
    ) -> Reduced:
        rows: Reduced = {}
        for layer in layers:
            rows |= reduce_states(name, layer, held.states[layer], batch, mask, reductions)
        return rows

    def _alone(self, label: str, name: str, held: HeldStates, anatomy: Anatomy, batch: Batch, masks: Masks) -> Reduced:
        """Pooled states behind each block of one model, given what the other's own block was given."""
        reductions = {label: _over_sets(pooled_means, masks)}
        rows: Reduced = {}
        for block in self.layers:
            if 0 <= block < self.top:
                states = held.through(anatomy, block)
                rows |= reduce_states(f"{name} ({label})", block, states, batch, masks[""], reductions)
        return rows

    def _sinks(self, batch: Batch, held: HeldStates) -> Tensor | None:
        """The base's sink tokens; None where metrics are over all tokens alone."""
        if NO_SINKS not in self.settings.token_sets():
            return None
        norms = (token_norms(held.states[layer]) for layer in range(-1, self.top))
        return sink_tokens(norms, batch.region("all"), read_rule(self.settings.sinks))

    def _places(self, sinks: Tensor) -> Tensor:
        places = torch.zeros(len(sinks), self.settings.max_length, dtype=torch.bool)
        places[:, : sinks.shape[1]] = sinks[:, : places.shape[1]]
        return places

    def _reductions(self, batch: Batch, masks: Masks, *, deep: bool) -> dict[str, Reduction]:
        reductions: dict[str, Reduction] = {"pooled": _over_sets(pooled_means, masks)}
        if deep and "tokens" in self.kinds:
            reductions["tokens"] = _over_sets(self._token_columns, masks)
        if deep and "lens" in self.kinds:
            positions = lens_positions(masks[""], self.settings.lens_positions)
            reductions["lens"] = lambda states, mask: gather_positions(states, positions)
        if deep and "heads" in self.kinds:
            where = predicting(batch, self.settings.answer_positions, region="answer")[0]
            reductions["heads"] = lambda states, mask: gather_positions(states, where)
        return reductions

    def _token_columns(self, states: Tensor, masks: Sequence[Tensor]) -> Tensor:
        whole, names = Tokens(states, masks[0]), self._names("tokens")
        sets = (whole, *(Tokens(states, mask, among=whole) for mask in masks[1:]))
        return torch.stack([columns(names, each) for each in sets], dim=1)

    def _names(self, source: str) -> tuple[str, ...]:
        """The metrics that this pass computes from one source: the columns of its rows."""
        return computed_from(source, self._wanted)

    @cached_property
    def _wanted(self) -> tuple[str, ...]:
        return choose(self.settings.metrics)

    def _rounded(
        self, batch: Batch, mask: Tensor, reductions: Mapping[str, Reduction], routing: RoutingRows
    ) -> Reduced | None:
        """Rows of the base in the other precision; None where it cannot run in it: a side measurement ends no run."""
        anatomy = self.anatomies[BASE]
        try:
            if self._types is None:
                self._types = types_of(anatomy)
            with rounded(anatomy, self._types), routing.reading(ROUNDED):
                return dict(reduce_batch(ROUNDED, anatomy, batch, mask, self.layers, reductions).rows)
        except FATAL:
            raise
        except (RuntimeError, TypeError, MidblockError) as error:
            said = error.what if isinstance(error, MidblockError) else str(error) or type(error).__name__
            self.lost = said.strip().splitlines()[0].rstrip(".")
            routing.forget(ROUNDED)
            return None

    def _general(self, batch: Batch) -> Iterator[Found]:
        """Both models' predictions of a text that the tuning was not about."""
        positions, kept = predicting(batch, self.settings.answer_positions, region="all")
        gather: dict[str, Reduction] = {"heads": lambda states, mask: gather_positions(states, positions)}
        at = {
            name: reduce_batch(name, anatomy, batch, batch.region("all"), [self.top], gather).rows["heads", self.top]
            for name, anatomy in self.anatomies.items()
        }
        yield from self._heads("general", batch, kept, at)

    def _heads(self, kind: str, batch: Batch, kept: Tensor, states: Mapping[str, Tensor]) -> Iterator[Found]:
        base = self.anatomies[BASE], states[BASE]
        for name, at in states.items():
            if name != BASE:
                values = divergences(base, (self.anatomies[name], at), kept, self.vocabulary)
                yield Found(name, kind, self.top, batch.index, values)

    def _lens(self, batch: Batch, states: Mapping[str, Reduced]) -> Iterator[Found]:
        compared: dict[str, Tensor] = {}
        for layer in self.layers:
            # The final norm's output is what the last block's state becomes: the same prediction, computed once.
            if layer < self.top or self.top - 1 not in self.layers:
                at = {name: found["lens", layer] for name, found in states.items()}
                compared = self._compare_layer(at, normed=layer == self.top)
            for name, values in compared.items():
                yield Found(name, "lens", layer, batch.index, values)

    def _compare_layer(self, states: Mapping[str, Tensor], *, normed: bool) -> dict[str, Tensor]:
        base = self.anatomies[BASE]
        logits = {
            # The rounded base is read with the base's own head: only its states are rounded.
            name: read_logits(self.anatomies.get(name, base), at, normed=normed, vocabulary=self.vocabulary)
            for name, at in states.items()
        }
        names, found = self._names("lens"), {name: list[Tensor]() for name in logits if name != BASE}
        for place, of_base in enumerate(logits[BASE].unsqueeze(1)):  # a prompt at a time
            ours = log_probabilities(of_base)
            for name, rows in found.items():
                theirs = log_probabilities(logits[name][place : place + 1]).to(ours.device)
                rows.append(columns(names, Predictions(ours, theirs)))
        return {name: torch.cat(rows) for name, rows in found.items()}


def _over_sets(reduce: Callable[[Tensor, Sequence[Tensor]], Tensor], masks: Masks) -> Reduction:
    """A reduction over each of these sets of tokens, whichever are given: B×S×… rows."""
    return lambda states, given: reduce(states, [mask.to(states.device) for mask in masks.values()])
