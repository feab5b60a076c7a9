"""`probe`: what a model would answer at every depth, through its own final norm and head.

Source: P1's layer-wise probing; "dormant, then emergent" becomes a number with an interval, the depth of emergence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from midblock.base import LayerPlan, LayerTable, Progress, from_options
from midblock.checkpoints import Anatomy, Pair, Variant
from midblock.data import Batch, ExampleSet
from midblock.evaluation import Scores, Targets, check_answerable, exact_match
from midblock.interventions.exits import cut_off, score_exits
from midblock.interventions.experiment import Bench, Experiment, Outcome, Step, Work, run_steps
from midblock.interventions.probe_curves import key_of, read_curves, summarize_probe
from midblock.interventions.probe_settings import ProbeSettings
from midblock.interventions.reading import DEFAULT_DATA
from midblock.trace import RowStore


def probe(
    pair: Pair,
    data: str | ExampleSet = DEFAULT_DATA,
    *,
    output_dir: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    command: str | None = None,
    **options: Any,
) -> LayerTable:
    """Read models off at every depth: next-token accuracy, NLL, perplexity and, with `generate`, exact match.

    Args:
        pair: from `load_pair`, `load_models` (which takes a lone model too) or `Pair.of_models`.
        data: a dataset reference, or examples already loaded; with completions, unless `region` is "all".
        output_dir: a run folder to write; None writes nothing.
        resume, overwrite: what to do with a folder that is there.
        progress: told how far it got.
        command: how it was called, recorded.
        **options: fields of `ProbeSettings`.

    Returns:
        `exit_*` for every model, behind the embedding (layer -1) and each block.

    Raises:
        MidblockError: no final norm or head was found, or anything else the user can mend.
    """
    settings = from_options(ProbeSettings, options)
    experiment = Experiment("probe", pair, data, settings, progress, command)
    prepare = partial(_Pass.prepare, settings=settings)
    return experiment.run(prepare, output_dir=output_dir, resume=resume, overwrite=overwrite)


@dataclass
class _Pass:
    """All batches through all models, then the answers of models cut off; rows in `store`, saved piece by piece."""

    bench: Bench
    settings: ProbeSettings
    store: RowStore = field(default_factory=RowStore)

    @classmethod
    def prepare(cls, bench: Bench, settings: ProbeSettings) -> Work:
        """Lay out the steps.

        Raises:
            MidblockError: what the user can mend.
        """
        found = cls(bench, settings)
        return partial(found.run, [*found._readings(), *found._answers()])

    def run(self, steps: list[tuple[float, Step]]) -> Outcome:
        """Do the steps, each given with its cost, and read the curves off the rows."""
        run_steps(steps, self.store, self.bench, "probing")
        pair, seed = self.bench.pair, self.settings.seed
        curves = [read_curves(variant.name, pair.blocks, self.store, seed) for variant in pair]
        rows = [row for curve in curves for row in curve.rows(self.bench.answers.reference)]
        return Outcome(rows, summarize_probe(curves))

    def _readings(self) -> list[tuple[float, Step]]:
        steps: list[tuple[float, Step]] = []
        for variant in self.bench.pair:
            anatomy = Anatomy.of(variant.model)
            for batch, targets in zip(self.bench.answers.batches, self.bench.answers.targets, strict=True):
                steps.append((batch.input_ids.numel(), partial(self._read, variant, anatomy, batch, targets)))
        return steps

    def _read(self, variant: Variant, anatomy: Anatomy, batch: Batch, targets: Targets) -> None:
        def on_exit(layer: int, scores: Scores) -> None:
            self.store.update(key_of("exit", variant.name, layer), batch.index, targets.sums(scores))

        layers = range(-1, len(anatomy))
        score_exits(variant.name, anatomy, batch, targets, layers, self.bench.pair.vocabulary, on_exit)

    def _answers(self) -> list[tuple[float, Step]]:
        if not self.settings.generate:
            return []
        chosen = LayerPlan.parse(self.settings.generate_layers, self.bench.pair.blocks).blocks
        examples = self.bench.answers.first(self.settings.generate_samples)
        for variant in self.bench.pair:
            check_answerable(variant.model, self.bench.answers.tokenizer, examples, **self.settings.answering)
        cost = len(examples.examples) * self.settings.max_new_tokens
        return [
            (cost * (layer + 1) / self.bench.pair.blocks, partial(self._answer, variant, layer, examples))
            for variant in self.bench.pair
            for layer in chosen
        ]

    def _answer(self, variant: Variant, layer: int, examples: ExampleSet) -> None:
        with cut_off(Anatomy.of(variant.model), layer):
            found = exact_match(variant.model, self.bench.answers.tokenizer, examples, **self.settings.answering)
        right = found.correct.double()[:, None]
        self.store.update(key_of("answer", variant.name, layer), torch.arange(found.n), right)
