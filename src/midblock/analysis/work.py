"""The work of an analysis: states of every sample of prompts, then weights; finished to rows of the LayerTable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from midblock.analysis.control_rows import equal_step_rows, random_rows
from midblock.analysis.control_words import Control, read_controls
from midblock.analysis.controls import changed
from midblock.analysis.estimates import Estimates
from midblock.analysis.measure import Measured, Measurement, total_tokens
from midblock.analysis.mixtures import EXPERTS
from midblock.analysis.precision import own_share_of_floor
from midblock.analysis.prompts import Prompts
from midblock.analysis.rounding import own_precision
from midblock.analysis.samples import sample_rows, spread_rows
from midblock.analysis.settings import AnalysisSettings
from midblock.analysis.sink_notes import sink_notes
from midblock.analysis.states import with_states
from midblock.analysis.summary import summarize
from midblock.analysis.weight_comparison import WeightComparison, entries_of
from midblock.base import LayerPlan, LayerRow, LayerTable, MidblockError, write_json
from midblock.base.seal import fingerprint
from midblock.checkpoints import Anatomy, Pair, quiet_transformers
from midblock.metrics.catalogue import METRICS, choose
from midblock.metrics.metric import NO_SINKS, SEED, is_estimate
from midblock.runs.processes import main_process
from midblock.runs.request import models_of
from midblock.runs.run import Bench, Outcome
from midblock.trace.routing import Mixtures

Advance = Callable[[float], None]

LOOSE = 1e-6  # of a control change's norm
SOURCES = {"pooled", "tokens", "own", "lens", "heads", "views", *EXPERTS}  # of metrics that a pass over prompts gives

# Words of notes about weights that only one model has, or that cannot be compared: no sentence calls the models equal.
LEFT_OUT = ("not compared", "are compared", "left out")


def kinds_of(settings: AnalysisSettings) -> frozenset[str]:
    """What the measuring pass must collect for the metrics asked for; nothing where only weights are compared."""
    if settings.weights_only:
        return frozenset()
    wanted = choose(settings.metrics)
    kinds = SOURCES & {METRICS[name].source for name in wanted}
    if settings.num_token_samples == 0:
        kinds -= {"tokens", "lens", "own", "heads"}
    if "own" in kinds and "change_own_reverse" in wanted:
        kinds |= {"reverse"}
    paired = any(METRICS[name].paired and METRICS[name].source in kinds for name in wanted)
    if paired and settings.precision_floor and settings.num_token_samples >= 4:
        kinds.add("floor")
    return frozenset(kinds)


@dataclass(frozen=True)
class Analysis:
    """Everything that is read; `run` does the rest.

    Attributes:
        plan: the blocks to measure; with all of them, embedding and final norm are measured too.
        kinds: what the measuring pass collects, as of `Measurement`.
        samples: the samples of prompts; () where no state is measured.
        mixtures: experts and routers by model; empty where none are read.
        limit: as of `Measurement`.
    """

    pair: Pair
    settings: AnalysisSettings
    plan: LayerPlan
    kinds: frozenset[str]
    samples: tuple[Prompts, ...]
    mixtures: Mapping[str, Mixtures] = field(default_factory=dict)
    limit: int = 0

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers to measure: -1 the embedding, 0…L-1 the blocks, L the final norm."""
        blocks = self.pair.blocks
        return tuple(range(-1, blocks + 1)) if len(self.plan.blocks) == blocks else self.plan.blocks

    @property
    def wanted(self) -> frozenset[str]:
        """Names of the metrics."""
        return frozenset(choose(self.settings.metrics))

    def run(self, bench: Bench) -> Outcome:
        """Measure states and weights as asked.

        Raises:
            MidblockError: nothing is left to measure, or a number that cannot be computed.
        """
        rows = self._states(bench)
        if self.settings.weights_only or self.settings.weights:
            rows += self._weights(bench)
        if bench.run is not None and not main_process():  # which alone writes
            return Outcome([], {})
        if not rows:
            raise MidblockError("nothing to measure", hint="the metrics asked for need what was switched off")
        floor = "floor" in self.kinds and self.samples
        own = {"dtype": self._coarsest()} if floor else {}
        rows = with_states(rows, *map(own_share_of_floor, own.values()))
        return Outcome(
            rows,
            summarize(LayerTable.from_rows(rows), whole=self._whole(bench.notes), **own),
            {"models": models_of(self.pair)} if bench.run else {},  # hashes whole files
            {"samples.json": self._write_samples} if self.samples else {},
        )

    def _coarsest(self) -> torch.dtype:
        """Of what the models compute in."""
        types = (own_precision(Anatomy.of(variant.model)) for variant in self.pair)
        return max(types, key=lambda dtype: torch.finfo(dtype).eps)

    def _whole(self, notes: Sequence[str]) -> bool:
        """Whether nothing was left out of the comparison."""
        told = any(words in note for note in notes for words in LEFT_OUT)
        return len(self.plan.blocks) == self.pair.blocks and not told

    def _states(self, bench: Bench) -> list[LayerRow]:
        samples = list(self._by_sample(bench))
        if len(samples) < 2:
            return list(chain.from_iterable(samples))
        others = [sample_rows(each, number) for number, each in enumerate(samples[1:], start=1)]
        return [*samples[0], *chain.from_iterable(others), *spread_rows(samples)]

    def _by_sample(self, bench: Bench) -> Iterator[list[LayerRow]]:
        if not self.samples:
            return
        measuring = bench.progress.phase("measuring", sum(total_tokens(prompts) for prompts in self.samples))
        judging: Advance | None = None
        lost: list[dict[str, Any]] = []
        for number in range(len(self.samples)):
            with bench.phase("measure"), quiet_transformers():
                measurement = self._measurement(number, bench)
                measured = measurement.run(measuring)
            bench.notes += measurement.notes()
            asked, sets = len(self.settings.token_sets()), list(self._token_sets(measured))
            total = len(self.layers) * len(self.samples) * asked
            judging = judging or bench.progress.phase("intervals and nulls", total)
            rows: list[LayerRow] = []
            notes, undefined = sink_notes(measured, self.settings), list[str]()
            for tokens, wanted in sets:
                with bench.phase("evaluate"):
                    estimates = self._estimates(number, measured, bench, tokens, wanted)
                    rows += estimates.rows(judging)
                notes += estimates.notes()
                undefined += estimates.undefined.told()
                lost += estimates.undefined.records(f"{SEED}{number}" if number else "")
            judging(float((asked - len(sets)) * len(self.layers)))
            if number == 0 and not any(METRICS[name].of_weights for name in self.wanted):
                _check_defined(undefined, rows)
            if number == 0:
                rows += self._controls(bench)
            bench.notes += [f"Sample {number}: {note}" if number else note for note in notes]
            yield rows
        if lost:
            bench.record["undefined"] = lost

    def _controls(self, bench: Bench) -> list[LayerRow]:
        """The paired metrics under other changes of the same size, on the first sample."""
        controls = read_controls(self.settings.controls, self.settings.control_draws)
        if not controls:
            return []
        advance = bench.progress.phase("controls", total_tokens(self.samples[0]) * len(controls))
        by_kind: dict[str, list[list[LayerRow]]] = {}
        worst = 0.0
        for control in controls:
            with bench.phase("controls"), quiet_transformers(), changed(self.pair, control, self.settings.seed) as off:
                worst = max(worst, off)
                measured = self._control_measurement(control, bench).run(advance)
                rows: list[LayerRow] = []
                for tokens, wanted in self._token_sets(measured):
                    rows += replace(
                        self._estimates(0, measured, bench, tokens, wanted), partial=None, references=False
                    ).rows()
                by_kind.setdefault(control.kind, []).append(rows)
        if worst > LOOSE:
            bench.notes.append(
                f"Rounding to the weights' type left the norms of control changes up to {worst:.1e} off."
            )
        random, equal = by_kind.get("random", []), by_kind.get("equal-step", [])
        return [*(random_rows(random) if random else []), *(equal_step_rows(equal[0]) if equal else [])]

    def _control_measurement(self, control: Control, bench: Bench) -> Measurement:
        kinds = self.kinds & {"pooled", "own", "heads", *EXPERTS}
        folder = bench.partial / f"control-{control.label}" if bench.partial else None
        owner = fingerprint(bench.owner, "control", control.label)
        prompts = replace(self.samples[0], views=())
        return Measurement(self.pair, prompts, self.settings, kinds, self.layers, folder, owner, mixtures=self.mixtures)

    def _token_sets(self, measured: Measured) -> Iterator[tuple[str, frozenset[str]]]:
        """Suffixes of the metrics over each set of tokens, with those metrics; without sinks only where there are any.

        What is no mean over tokens has one set.
        """
        asked = self.settings.token_sets()
        several = frozenset(name for name in self.wanted if METRICS[name].over_tokens)
        without = NO_SINKS in asked and measured.has_sinks
        yield "", self.wanted if "" in asked or not without else self.wanted - several
        if without:
            yield NO_SINKS, several

    def _measurement(self, number: int, bench: Bench) -> Measurement:
        # Sample 0 alone has references; its pieces lie where those of a single sample would.
        kinds = self.kinds if number == 0 else self.kinds - {"floor"}
        folder = bench.partial / f"seed{number}" if bench.partial and number else bench.partial
        asked = (self.pair, self.samples[number], self.settings, kinds, self.layers)
        return Measurement(*asked, folder, bench.owner, mixtures=self.mixtures, limit=self.limit)

    def _estimates(
        self, number: int, measured: Measured, bench: Bench, tokens: str, wanted: frozenset[str]
    ) -> Estimates:
        return Estimates(
            measured,
            models=[variant.name for variant in self.pair.tuned],
            wanted=wanted,
            layers=self.layers,
            blocks=self.pair.blocks,
            reference=self.samples[number].reference,
            seed=self.settings.seed,
            references=number == 0,
            repeats=self.samples[number].repeats,
            clusters=self.samples[number].clusters,
            general_repeats=self.samples[number].general_repeats,
            tokens=tokens,
            general=self.samples[number].general_reference,
            partial=bench.partial / f"evaluated{number or ''}{tokens}" if bench.partial else None,
            owner=fingerprint(bench.owner, "evaluated", number, tokens, self.layers),
        )

    def _weights(self, bench: Bench) -> list[LayerRow]:
        wanted = frozenset(name for name in self.wanted if METRICS[name].of_weights)
        if not wanted:
            return []
        rows: list[LayerRow] = []
        with bench.phase("weights"):
            advance = bench.progress.phase("comparing weights", entries_of(self.pair.base) * len(self.pair.tuned))
            for variant in self.pair.tuned:
                comparison = WeightComparison(
                    self.pair.base,
                    variant,
                    self.pair.blocks,
                    wanted,
                    frozenset(self.layers),
                    self.settings.subspace_rank,
                    self.settings.exact_spectra,
                    bench.notes,
                )
                rows += comparison.rows(advance)
        return rows

    def _write_samples(self, path: Path) -> None:
        write_json(path, [{"prompt": text} for text in self.samples[0].samples])


def _check_defined(undefined: Sequence[str], rows: Sequence[LayerRow]) -> None:
    """Raise MidblockError where none of the numbers that were asked for has a value."""
    if not any(is_estimate(row.metric) and math.isfinite(row.value) for row in rows):
        raise MidblockError(
            *undefined[:1] or ["nothing to measure"], hint="use more prompts, other --metrics or --region"
        )
