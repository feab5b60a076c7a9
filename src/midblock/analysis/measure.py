"""The measuring pass: batches through all models, layer by layer, to one row per prompt; it survives being killed.

Cost: one forward pass a batch and model without the head, and what is kept of it, at most N×L×D numbers a model, twice
that where prompts have sinks. What is done with one batch is in `batch_pass`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from midblock.analysis.batch_pass import BatchPass, Found
from midblock.analysis.prompts import Prompts
from midblock.analysis.settings import AnalysisSettings
from midblock.base.names import BASE, ROUNDED
from midblock.checkpoints import Anatomy, Pair
from midblock.data import Batch
from midblock.metrics.metric import NO_SINKS
from midblock.runs.sharing import shared
from midblock.runs.steps import Step, run_steps
from midblock.runs.walking import run_walk
from midblock.trace import RowStatistic, RowStore
from midblock.trace.pieces import SAVE_SECONDS
from midblock.trace.routing import Mixtures
from midblock.trace.walk import walk_whole

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
        """The rows of a kind; of one without sinks, those over all tokens where a prompt has no sink.

        None where there are none, or no prompt has a sink at all.
        """
        rows = self.rows.get(key_of(self._numbers[model], kind, layer))
        plain = kind.removesuffix(NO_SINKS)
        if rows is None or plain == kind:
            return rows
        whole = self.rows[key_of(self._numbers[model], plain, layer)]
        values = whole.values.clone()
        values[torch.isin(whole.index, rows.index)] = rows.values
        return RowStatistic(whole.index, values)

    @property
    def sinks(self) -> RowStatistic | None:
        """For each prompt, which of its positions are sinks of the base; None where that was not asked for."""
        return self.rows.get(key_of(0, "sinks", -1))

    @property
    def has_sinks(self) -> bool:
        """Whether a token that counts is a sink, in any prompt."""
        return any(kind == f"pooled{NO_SINKS}" for kind in (key.split("|", 1)[0] for key in self.rows))

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
        kinds: what is wanted: any of "pooled", "tokens", "own", "reverse", "lens", "heads", "views", "floor".
        layers: the layers to measure.
        partial: folder for pieces of an unfinished pass, None to keep them in memory only.
        owner: fingerprint of the run; pieces of another one are refused.
        save_seconds: least time between two pieces.
        dropped: what a reader must know of pieces that were damaged.
        lost: why the base could not be run in the other precision; "" while it can.
        mixtures: experts and routers by model; empty where none are read.
        limit: block by block, bytes of states that are held before they go to disk.
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
    mixtures: Mapping[str, Mixtures] = field(default_factory=dict)
    limit: int = 0

    def run(self, advance: Advance = lambda tokens: None) -> Measured:
        """Run what is left to run; `advance` hears how many tokens each batch held.

        Raises:
            MidblockError: activations that are not finite, or a piece that another run kept.
        """
        anatomies = {variant.name: Anatomy.of(variant.model) for variant in self.pair}
        through = BatchPass(
            anatomies,
            self.settings,
            self.kinds,
            self.layers,
            self.pair.vocabulary,
            self.prompts.rounded,
            mixtures=self.mixtures,
        )
        if self.pair.in_parts:
            self._by_blocks(through, advance)
        else:
            self._whole_models(through, advance)
        self.lost = next(filter(None, shared().all_texts(through.lost)), "")
        return Measured(self._whole(self.store.finish()), [variant.name for variant in self.pair.tuned])

    def _whole_models(self, through: BatchPass, advance: Advance) -> None:
        steps = [step for _, _, step in self._steps(through)]
        self.dropped += run_steps(
            steps, self.store, self.partial, advance, owner=self.owner, save_seconds=self.save_seconds
        )

    def _by_blocks(self, through: BatchPass, advance: Advance) -> None:
        """All batches together, block by block; what they find comes at the end of each model."""
        self.store.room.limit = self.limit // 2  # the rest is the walk's, for states
        works = [(step, through.work(kind, batch)) for kind, batch, step in self._steps(through)]
        self.dropped += run_walk(
            self.pair,
            works,
            self.store,
            self._keep,
            self.partial,
            advance,
            owner=self.owner,
            limit=self.limit - self.limit // 2,
            share=1 / len(self.pair.in_parts),
            save_seconds=self.save_seconds,
        )

    def _steps(self, through: BatchPass) -> Iterator[tuple[str, Batch, Step]]:
        keys = {kind: self._keys(kind) for kind, _ in self._batches()}
        for kind, batch in self._batches():
            do, index = partial(self._step, through, kind, batch), tuple(batch.index.tolist())
            yield kind, batch, Step(batch.input_ids.numel(), do, keys[kind], index)

    def notes(self) -> list[str]:
        """What a reader must know, once it has run."""
        return [*self.dropped, *([f"The precision floor could not be had: {self.lost}."] if self.lost else [])]

    def _step(self, through: BatchPass, kind: str, batch: Batch) -> None:
        walk_whole(through.work(kind, batch), through.anatomies, self._keep)

    def _keep(self, found: Found) -> None:
        key = key_of(self._numbers[found.model], found.kind, found.layer)
        self.store.update(key, found.index, found.values)

    def _keys(self, kind: str) -> tuple[str, ...]:
        """Where every batch of a kind must leave rows; the rounded base may fail, and not every prompt has sinks."""
        tuned = [variant.name for variant in self.pair.tuned]
        top, blocks = self.pair.blocks, [layer for layer in self.layers if 0 <= layer < self.pair.blocks]
        both, deep = [BASE, *tuned], kind == "deep"
        wanted: list[tuple[str, Sequence[str], Sequence[int]]] = [
            (
                "pooled" if deep else kind,
                tuned if kind == "general" else both,
                [top] if kind == "general" else self.layers,
            )
        ]
        if kind in ("deep", "pooled") and self.mixtures:
            mixed = [block for block in blocks if block in self.mixtures[BASE]]
            wanted.append(("loads", both, mixed))
            wanted.append(("routers", tuned if "routers" in self.kinds else (), mixed))
        if deep:
            places = {"tokens": self.layers, "lens": self.layers, "own": blocks, "reverse": blocks, "heads": [top]}
            wanted += [
                (label, both if label == "tokens" else tuned, layers)
                for label, layers in places.items()
                if label in self.kinds
            ]
        return tuple(
            key_of(self._numbers[name], label, layer)
            for label, names, layers in wanted
            for name in names
            for layer in layers
        )

    def _whole(self, rows: dict[str, RowStatistic]) -> dict[str, RowStatistic]:
        """The rows, without those of a rounded base that did not get through all of its prompts."""
        all_of_them = len(self.prompts.rounded)
        own = {key for key in rows if key.endswith(f"|{ROUNDED_BASE}")}
        short = {key for key in own if NO_SINKS not in key and len(rows[key].index) < all_of_them}
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
        yield from (("general", batch) for batch in self.prompts.general)


def is_dispatched(model: nn.Module) -> bool:
    """Whether accelerate has spread the model, so that its parameters cannot simply be exchanged."""
    places = getattr(model, "hf_device_map", None) or {}
    return len(set(places.values())) > 1 or any(value.is_meta for value in model.parameters())


def total_tokens(prompts: Prompts) -> int:
    """Padded tokens of all batches, for a progress bar."""
    groups: Iterable[list[Batch]] = (prompts.deep, prompts.pooled, *prompts.views, prompts.general)
    return sum(batch.input_ids.numel() for batches in groups for batch in batches)
