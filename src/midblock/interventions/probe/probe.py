"""`probe`: what a model would answer at every depth, through its own final norm and head.

p_l = softmax(head(norm(h_l))), h_l the residual stream behind block l. Cost: one forward pass a batch and model, and a
head's worth of logits at each depth; with `generate`, an answer to each example from every model cut off. Source: P1's
layer-wise probing, the logit lens (nostalgebraist 2020); "dormant, then emergent" becomes a number with an interval,
the depth of emergence. Described in docs/causes/probe.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from midblock.base import LayerPlan, LayerTable, Progress, divide
from midblock.checkpoints import Anatomy, Pair, Variant
from midblock.data import Batch, ExampleSet
from midblock.evaluation import Scores, Targets, check_answerable, exact_match
from midblock.interventions.answer_rows import keep_matches
from midblock.interventions.answering import Answers, read_answers
from midblock.interventions.probe.curves import key_of, read_curves, summarize_probe
from midblock.interventions.probe.exits import cut_off, score_exits
from midblock.interventions.probe.settings import ProbeSettings
from midblock.interventions.readable import TRIES, load_readable, notes_for, ready_to_measure
from midblock.runs.lending import lent
from midblock.runs.reading import DEFAULT_DATA
from midblock.runs.request import draft_of
from midblock.runs.run import Bench, Outcome, Ready, carry_out
from midblock.runs.steps import Step, run_steps
from midblock.runs.where import Where
from midblock.trace import RowStore


def probe(pair: Pair, data: str | ExampleSet = DEFAULT_DATA, **options: Any) -> LayerTable:
    """Read models off at every depth: next-token accuracy, NLL, perplexity and, with `generate`, exact match.

    Args:
        pair: from `load_pair`, `load_models` (which takes a lone model too) or `Pair.of_models`.
        data: a dataset reference, or examples already loaded; with completions, unless `region` is "all".
        **options: fields of `ProbeSettings`, and of `Where`: `output_dir`, `resume`, `overwrite`, …

    Returns:
        `exit_*` for every model, behind the embedding (layer -1) and each block.

    Raises:
        MidblockError: no final norm or head was found, or anything else the user can mend.

    Example:
        >>> table = probe(load_pair(base, tuned), data, num_samples=12)
        >>> table.curve("exit_accuracy", "sft").layer.tolist()
        [-1, 0, 1, 2]
    """
    where, settings = divide(options, Where, ProbeSettings)
    draft = draft_of("probe", pair, data, settings, pair.base.loading)

    def prepare(progress: Progress) -> Ready:
        answers = read_answers(pair, data, settings)
        load_readable(pair, answers, progress)
        probing = _Probing(pair, answers, settings)
        work = partial(probing.run, list(probing.steps()))
        notes = notes_for(pair, data, answers, answers.notes())
        return ready_to_measure(draft, pair, answers, work, seed=settings.seed, notes=notes)

    with lent(pair, tries=TRIES):
        return carry_out(draft, prepare, where, share=True).table


@dataclass
class _Probing:
    """All batches through all models, then the answers of models cut off; rows in `store`, saved piece by piece."""

    pair: Pair
    answers: Answers
    settings: ProbeSettings
    store: RowStore = field(default_factory=RowStore)

    @cached_property
    def _variants(self) -> tuple[Variant, ...]:
        return tuple(self.pair)

    def steps(self) -> Iterator[Step]:
        """What there is to do, each step with its cost.

        Raises:
            MidblockError: what the user can mend.
        """
        yield from self._readings()
        if self.settings.generate:
            yield from self._answers()

    def run(self, steps: list[Step], bench: Bench) -> Outcome:
        """Do the steps, and read the curves off the rows."""
        advance = bench.progress.phase("probing", sum(step.cost for step in steps))
        bench.notes += run_steps(steps, self.store, bench.partial, advance, owner=bench.owner)
        blocks, seed = self.pair.blocks, self.settings.seed
        known = (self.store, seed, self.answers.clusters)
        curves = [read_curves(each.name, model, blocks, *known) for model, each in enumerate(self.pair)]
        rows = [row for curve in curves for row in curve.rows(self.answers.reference)]
        return Outcome(rows, summarize_probe(curves))

    def _readings(self) -> Iterator[Step]:
        for model, variant in enumerate(self.pair):
            anatomy = Anatomy.of(variant.model)
            keys = tuple(key_of("exit", model, layer) for layer in range(-1, len(anatomy)))
            for batch, targets in zip(self.answers.batches, self.answers.targets, strict=True):
                read = partial(self._read, model, anatomy, batch, targets)
                yield Step(batch.input_ids.numel(), read, keys, tuple(batch.index.tolist()))

    def _read(self, model: int, anatomy: Anatomy, batch: Batch, targets: Targets) -> None:
        def on_exit(layer: int, scores: Scores) -> None:
            self.store.update(key_of("exit", model, layer), batch.index, targets.sums(scores))

        layers = range(-1, len(anatomy))
        score_exits(self._variants[model].name, anatomy, batch, targets, layers, self.pair.vocabulary, on_exit)

    def _answers(self) -> Iterator[Step]:
        total = self.pair.blocks
        chosen = LayerPlan.parse(self.settings.generate_layers, total).blocks
        examples = self.answers.first(self.settings.generate_samples)
        for variant in self.pair:
            check_answerable(variant.model, self.answers.tokenizer, examples, **self.settings.answering)
        cost = len(examples) * self.settings.max_new_tokens
        for model in range(len(self._variants)):
            for layer in chosen:
                answer, keys = partial(self._answer, model, layer, examples), (key_of("answer", model, layer),)
                yield Step(cost * (layer + 1) / total, answer, keys, tuple(range(len(examples))))

    def _answer(self, model: int, layer: int, examples: ExampleSet) -> None:
        variant = self._variants[model]
        with cut_off(Anatomy.of(variant.model), layer):
            found = exact_match(variant.model, self.answers.tokenizer, examples, **self.settings.answering)
        keep_matches(self.store, key_of("answer", model, layer), found)
