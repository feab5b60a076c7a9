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
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from midblock.analysis.heads import divergences, predicting
from midblock.analysis.lens import compare_lenses, gather_positions, lens_positions
from midblock.analysis.rounding import rounded, types_of
from midblock.analysis.routing_rows import RoutingRows
from midblock.analysis.settings import AnalysisSettings
from midblock.analysis.token_sets import TokenSets
from midblock.base.names import BASE, ROUNDED
from midblock.checkpoints import Anatomy
from midblock.data import Batch
from midblock.metrics.catalogue import choose, columns, computed_from
from midblock.metrics.metric import NO_SINKS
from midblock.metrics.sinks import read_rule
from midblock.metrics.tokens import Tokens, pooled_mean, pooled_means
from midblock.trace import HeldStates, Reduction
from midblock.trace.routing import Mixtures
from midblock.trace.walk import Alone, Asked, Pass, Passed, Rows, Work, reduce_held


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
        looked: list[TokenSets] = []

        def sets_of(held: HeldStates) -> TokenSets:
            if not looked:  # every layer's states, which may lie on the disk, are read for it
                looked.append(self._sets(batch, mask, held))
            return looked[0]

        base = routing.watched(Pass(BASE, batch, mask, hold=True, calls=deep and "own" in self.kinds))
        passed = yield Asked((base, *self._rounded(batch, mask, sets_of, routing, deep=deep)))
        held, routing.noted[BASE] = passed[0].states, passed[0].noted
        sets = sets_of(held)
        if sets.sinks is not None:
            yield Found(BASE, "sinks", -1, batch.index, self._places(sets.sinks))
        reductions = self._reductions(batch, sets, deep=deep)
        layers = tuple(sorted({*self.layers, *([self.top] if "heads" in reductions else [])}))
        first = {BASE: reduce_held(replace(base, layers=layers), held.states, reductions)}
        first |= self._of_rounded(passed[1:], routing)
        found: dict[str, Rows] = {}
        for name, rows in first.items():
            found[name] = yield from self._found(name, batch, rows, sets)
        for name in self.anatomies:
            if name == BASE:
                continue
            tuned = routing.watched(Pass(name, batch, mask, layers=layers, reductions=reductions))
            if deep and "own" in self.kinds:
                tuned = replace(tuned, alone=self._alone("own", name, held, sets))
            if deep and "reverse" in self.kinds:
                tuned = replace(tuned, hold=True, calls=True)
            (through,) = yield Asked((tuned,))
            rows, routing.noted[name] = through.rows, through.noted
            if deep and "reverse" in self.kinds:
                alone = self._alone("reverse", name, through.states, sets)
                (back,) = yield Asked((Pass(BASE, batch, mask, alone=alone),))
                rows = {**rows, **back.rows}
            found[name] = yield from self._found(name, batch, rows, sets)
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

    def _found(self, name: str, batch: Batch, rows: Rows, sets: TokenSets) -> Generator[Found, Any, Rows]:
        """Rows of each set of tokens; without sinks, of the prompts that have one: the others' are those over all.

        Returns:
            What predictions are read off, which is no row of a prompt.
        """
        gathered = [place for place in rows if place[0] in ("lens", "heads")]
        for label, layer in [place for place in rows if place not in gathered]:
            for suffix, of_set in zip(sets.masks, rows[label, layer].unbind(1), strict=True):
                kept = sets.having if suffix else torch.ones_like(sets.having)
                if layer in self.layers:
                    yield Found(name, label + suffix, layer, batch.index[kept], of_set[kept])
        return {place: rows[place] for place in gathered} if isinstance(rows, dict) else rows

    def _alone(self, label: str, name: str, held: HeldStates, sets: TokenSets) -> Alone:
        """Pooled states behind each block of one model, given what the other's own block was given."""
        blocks = tuple(block for block in self.layers if 0 <= block < self.top)
        return Alone(held, blocks, {label: sets.over(pooled_means)}, f"{name} ({label})")

    def _sets(self, batch: Batch, mask: Tensor, held: HeldStates) -> TokenSets:
        if NO_SINKS not in self.settings.token_sets():
            return TokenSets(mask)
        states = (held.states[layer] for layer in range(-1, self.top))
        return TokenSets.found(mask, states, batch.region("all"), read_rule(self.settings.sinks))

    def _places(self, sinks: Tensor) -> Tensor:
        places = torch.zeros(len(sinks), self.settings.max_length, dtype=torch.bool)
        places[:, : sinks.shape[1]] = sinks[:, : places.shape[1]]
        return places

    def _reductions(self, batch: Batch, sets: TokenSets, *, deep: bool) -> dict[str, Reduction]:
        reductions: dict[str, Reduction] = {"pooled": sets.over(pooled_means)}
        if deep and "tokens" in self.kinds:
            reductions["tokens"] = sets.over(self._token_columns)
        if deep and "lens" in self.kinds:
            positions = lens_positions(sets.mask, self.settings.lens_positions)
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
        self,
        batch: Batch,
        mask: Tensor,
        sets_of: Callable[[HeldStates], TokenSets],
        routing: RoutingRows,
        *,
        deep: bool,
    ) -> Iterator[Pass]:
        """The base in the other precision, where that is wanted: a side measurement, which ends no run."""
        if not deep or "floor" not in self.kinds or self.lost or not self.rounded.issuperset(batch.index.tolist()):
            return

        def reductions(before: Sequence[Passed]) -> Mapping[str, Reduction]:
            found = self._reductions(batch, sets_of(before[0].states), deep=True)
            return {label: each for label, each in found.items() if label.startswith(("pooled", "lens"))}

        wanted = Pass(
            BASE, batch, mask, ROUNDED, self.layers, reductions, around=self._in_other_precision, lenient=True
        )
        yield routing.watched(wanted)

    def _in_other_precision(self) -> AbstractContextManager[None]:
        anatomy = self.anatomies[BASE]
        if self._types is None:
            self._types = types_of(anatomy)
        return rounded(anatomy, self._types)

    def _of_rounded(self, passed: Sequence[Passed], routing: RoutingRows) -> dict[str, Rows]:
        found: dict[str, Rows] = {}
        for each in passed:
            self.lost = self.lost or each.failed
            if not each.failed:
                found[ROUNDED], routing.noted[ROUNDED] = each.rows, each.noted
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
                compared = compare_lenses(
                    self.anatomies, at, self._names("lens"), normed=layer == self.top, vocabulary=self.vocabulary
                )
            for name, values in compared.items():
                yield Found(name, "lens", layer, batch.index, values)
