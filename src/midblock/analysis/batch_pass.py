"""One batch through all models of a pair, each layer reduced to rows as it passes: nothing is kept, nothing is summed.

It says which passes it needs and what to make of them; who runs them, batch by batch or all batches block by block, is
`trace.walk`'s affair.

The base goes first and its states are held while the batch is looked at, because two things need them: which tokens
are sinks is known only behind the last block, and a tuned block's own change is what it makes of the base's states.
Cost: a forward pass a model without the head; with "own", one more of the tuned blocks on the token-level prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from midblock.analysis.heads import divergences, predicting
from midblock.analysis.lens import gather_positions, lens_positions, log_probabilities, read_logits
from midblock.analysis.rounding import rounded, types_of
from midblock.analysis.routing_rows import RoutingRows
from midblock.analysis.settings import AnalysisSettings
from midblock.base.names import BASE, ROUNDED
from midblock.checkpoints import Anatomy
from midblock.data import Batch
from midblock.metrics.catalogue import choose, columns, computed_from
from midblock.metrics.metric import NO_SINKS
from midblock.metrics.predictions import Predictions
from midblock.metrics.sinks import read_rule, sink_tokens, token_norms, without_sinks
from midblock.metrics.tokens import Tokens, pooled_mean, pooled_means
from midblock.trace import HeldStates, Reduction
from midblock.trace.routing import Mixtures
from midblock.trace.walk import Alone, Asked, Pass, Passed, Rows, Work, reduce_held

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

    def work(self, kind: str, batch: Batch) -> Work:
        """What is done with a batch; what it finds are `Found`.

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

    def _view(self, kind: str, batch: Batch) -> Work:
        mask = batch.region(self.settings.region)
        for name in self.anatomies:
            (found,) = yield Asked((Pass(name, batch, mask, layers=self.layers, reductions={kind: pooled_mean}),))
            for (_, layer), values in found.rows.items():
                yield Found(name, kind, layer, batch.index, values)

    def _prompts(self, batch: Batch, *, deep: bool) -> Work:
        mask = batch.region(self.settings.region)
        routing = RoutingRows(self.mixtures, self._names("routers"))
        reading = partial(routing.reading, BASE)
        base = Pass(BASE, batch, mask, hold=True, calls=deep and "own" in self.kinds, watching=reading)
        passed = yield Asked((base, *self._rounded(batch, mask, routing, deep=deep)))
        held = passed[0].states
        sinks = self._sinks(batch, held)
        if sinks is not None:
            yield Found(BASE, "sinks", -1, batch.index, self._places(sinks))
        masks = self._masks(mask, sinks)
        suffixes = tuple(masks)
        having = (mask & sinks).any(1) if sinks is not None else torch.zeros(len(mask), dtype=torch.bool)
        reductions = self._reductions(batch, masks, deep=deep)
        layers = tuple(sorted({*self.layers, *([self.top] if "heads" in reductions else [])}))
        first = {BASE: reduce_held(replace(base, layers=layers), held.states, reductions)}
        first |= self._of_rounded(passed[1:], routing)
        found: dict[str, Rows] = {}
        for name, rows in first.items():
            found[name] = yield from self._found(name, batch, rows, suffixes, having)
        for name in self.anatomies:
            if name == BASE:
                continue
            reading = partial(routing.reading, name)
            tuned = Pass(name, batch, mask, layers=layers, reductions=reductions, watching=reading)
            if deep and "own" in self.kinds:
                tuned = replace(tuned, alone=self._alone("own", name, held, masks))
            if deep and "reverse" in self.kinds:
                tuned = replace(tuned, hold=True, calls=True)
            (through,) = yield Asked((tuned,))
            rows = through.rows
            if deep and "reverse" in self.kinds:
                alone = self._alone("reverse", name, through.states, masks)
                (back,) = yield Asked((Pass(BASE, batch, mask, alone=alone),))
                rows = {**rows, **back.rows}
            found[name] = yield from self._found(name, batch, rows, suffixes, having)
        for name, kind, block, chosen in routing.rows(mask):
            if block in self.layers:
                yield Found(name, kind, block, batch.index, chosen)
        yield from self._read_off(batch, found, deep=deep)

    def _read_off(self, batch: Batch, found: Mapping[str, Rows], *, deep: bool) -> Work:
        """What the models predict of the states that were gathered."""
        if not deep or not self.kinds & {"lens", "heads"}:
            return
        yield Asked()
        if "lens" in self.kinds:
            yield from self._lens(batch, found)
        if "heads" in self.kinds:
            at = {name: rows["heads", self.top] for name, rows in found.items() if name != ROUNDED}
            kept = predicting(batch, self.settings.answer_positions, region="answer")[1]
            yield from self._heads("heads", batch, kept, at)

    def _masks(self, mask: Tensor, sinks: Tensor | None) -> dict[str, Tensor]:
        """The sets of tokens that metrics are over; without sinks only where there are any."""
        masks = {"": mask}
        if sinks is not None and bool((mask & sinks).any()):
            masks[NO_SINKS] = without_sinks(mask, sinks)
        return masks

    def _found(
        self, name: str, batch: Batch, rows: Rows, suffixes: Sequence[str], having: Tensor
    ) -> Generator[Found, Any, Rows]:
        """Rows of each set of tokens; without sinks, of the prompts that have one: the others' are those over all.

        Returns:
            What predictions are read off, which is no row of a prompt.
        """
        gathered = [place for place in rows if place[0] in ("lens", "heads")]
        for label, layer in [place for place in rows if place not in gathered]:
            for suffix, of_set in zip(suffixes, rows[label, layer].unbind(1), strict=True):
                kept = having if suffix else torch.ones_like(having)
                if layer in self.layers:
                    yield Found(name, label + suffix, layer, batch.index[kept], of_set[kept])
        return {place: rows[place] for place in gathered} if isinstance(rows, dict) else rows

    def _alone(self, label: str, name: str, held: HeldStates, masks: Masks) -> Alone:
        """Pooled states behind each block of one model, given what the other's own block was given."""
        blocks = tuple(block for block in self.layers if 0 <= block < self.top)
        return Alone(held, blocks, {label: _over_sets(pooled_means, masks)}, f"{name} ({label})")

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

    def _rounded(self, batch: Batch, mask: Tensor, routing: RoutingRows, *, deep: bool) -> Iterator[Pass]:
        """The base in the other precision, where that is wanted: a side measurement, which ends no run."""
        if not deep or "floor" not in self.kinds or self.lost or not self.rounded.issuperset(batch.index.tolist()):
            return

        def reductions(before: Sequence[Passed]) -> Mapping[str, Reduction]:
            masks = self._masks(mask, self._sinks(batch, before[0].states))
            found = self._reductions(batch, masks, deep=True)
            return {label: each for label, each in found.items() if label.startswith(("pooled", "lens"))}

        yield Pass(
            BASE,
            batch,
            mask,
            name=ROUNDED,
            layers=self.layers,
            reductions=reductions,
            around=self._in_other_precision,
            watching=partial(routing.reading, ROUNDED),
            lenient=True,
        )

    def _in_other_precision(self) -> AbstractContextManager[None]:
        anatomy = self.anatomies[BASE]
        if self._types is None:
            self._types = types_of(anatomy)
        return rounded(anatomy, self._types)

    def _of_rounded(self, passed: Sequence[Passed], routing: RoutingRows) -> dict[str, Rows]:
        found: dict[str, Rows] = {}
        for each in passed:
            self.lost = self.lost or each.failed
            if each.failed:
                routing.forget(ROUNDED)
            found |= {} if each.failed else {ROUNDED: each.rows}
        return found

    def _general(self, batch: Batch) -> Work:
        """Both models' predictions of a text that the tuning was not about."""
        positions, kept = predicting(batch, self.settings.answer_positions, region="all")
        gather: dict[str, Reduction] = {"heads": lambda states, mask: gather_positions(states, positions)}
        at: dict[str, Tensor] = {}
        for name in self.anatomies:
            wanted = Pass(name, batch, batch.region("all"), layers=(self.top,), reductions=gather)
            (passed,) = yield Asked((wanted,))
            at[name] = passed.rows["heads", self.top]
        yield Asked()
        yield from self._heads("general", batch, kept, at)

    def _heads(self, kind: str, batch: Batch, kept: Tensor, states: Mapping[str, Tensor]) -> Iterator[Found]:
        base = self.anatomies[BASE], states[BASE]
        for name, at in states.items():
            if name != BASE:
                values = divergences(base, (self.anatomies[name], at), kept, self.vocabulary)
                yield Found(name, kind, self.top, batch.index, values)

    def _lens(self, batch: Batch, states: Mapping[str, Rows]) -> Iterator[Found]:
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
