"""`steer`: push the base towards a tuned model by adding a direction to its residual stream, and see how far it gets.

Source: mean-shift and PCA directions at chosen blocks while generating. Ours: held-out prompts, random directions as a
control, and the share of the NLL's gap that is closed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from midblock.base import Estimate, LayerPlan, LayerRow, LayerTable, MidblockError, Progress, from_options, write_json
from midblock.checkpoints import load_pair, split_options
from midblock.data import ExampleSet, make_batches
from midblock.interventions.directions import Directions, estimate_directions
from midblock.interventions.experiment import Bench, Experiment, Outcome, Work
from midblock.interventions.reading import DEFAULT_DATA, Answers, read_answers
from midblock.interventions.steer_answers import Writing
from midblock.interventions.steer_effect import Kept, Scorer
from midblock.interventions.steer_samples import Samples
from midblock.interventions.steer_settings import SteerSettings
from midblock.interventions.steer_source import FILE, Source
from midblock.interventions.steer_summary import summarize_steering

DIRECTION_DATA = "the samples of the directions"


def steer(
    base: str,
    source: str | Path,
    data: str | ExampleSet = DEFAULT_DATA,
    *,
    output_dir: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    command: str | None = None,
    **options: Any,
) -> LayerTable:
    """Add α·direction to the base's residual stream at chosen blocks, while it generates and while it is scored.

    A block's direction is what the tuned model's states there have beyond the base's, on average. It is judged on
    other prompts: how likely the steered base finds the tuned model's own answers, in nats per token.

    Args:
        base: the model that is steered, a model reference.
        source: where to: a tuned model, or the run folder of `midblock analyze`, whose first tuned model it is, or of
            an earlier `midblock steer`, whose directions are used again.
        data: a dataset reference, or examples already loaded; two samples of it that share none are used.
        output_dir: a run folder to write (with `texts.json` and `directions.safetensors`); None writes nothing.
        resume, overwrite: what to do with a folder that is there.
        progress: told how far it got.
        command: how it was called, recorded.
        **options: fields of `SteerSettings` (`blocks`, `alpha`, `kind`, …) and of `LoadSettings`.

    Returns:
        `steer_*` of every block.

    Raises:
        MidblockError: the models do not differ at the chosen blocks, the tuned model answers nothing, or anything else
            the user can mend; what was found until then stays for `resume`.
    """
    loading, asked = split_options(options)
    settings = from_options(SteerSettings, asked)
    found = Source.of(str(source))
    pair = load_pair(base, found.tuned, **asdict(loading))
    blocks = LayerPlan.parse(settings.blocks, pair.blocks)
    ready = found.directions(pair)
    notes = found.notes(pair.base.reference)
    if ready is not None:
        notes += _notes_of_reuse(found, ready, data, settings)
        settings = replace(settings, kind=ready.kind, components=ready.components)
    samples = Samples.of(data, settings, needed=ready is None)
    # The run folder names the source, not what it led to, so that its config.yaml can be run again.
    references = {"base": pair.base.reference, "from": found.reference}
    experiment = _SteerExperiment(
        "steer",
        pair,
        samples.judged,
        settings,
        progress,
        command,
        references,
        found,
        samples if ready is None else None,
    )
    work = _Steering(settings, blocks, samples, ready, notes)
    return experiment.run(work.prepare, output_dir=output_dir, resume=resume, overwrite=overwrite)


def _notes_of_reuse(source: Source, ready: Directions, data: str | ExampleSet, settings: SteerSettings) -> list[str]:
    notes = [f"The directions are those of {source.reference} ({ready.kind}, {ready.n} samples)."]
    before = source.settings or {}
    same = isinstance(data, str) and data == before.get("data")
    same = same and all(getattr(settings, name) == before.get(name) for name in ("split", "seed"))
    if not (same and settings.num_samples <= before.get("num_samples", 0)):
        notes.append("They may have been estimated on some of the prompts judged here: other data, or another draw.")
    return notes


@dataclass
class _SteerExperiment(Experiment):
    """An experiment that also reads directions, or the samples to estimate them on."""

    source: Source | None = None
    samples: Samples | None = None

    def _sources(self) -> list[Path]:
        named = [Path(self.source.reference.strip()).expanduser()] if self.source is not None else []
        return [*super()._sources(), *(place for place in named if place.exists())]

    def _inputs(self, answers: Answers | None) -> dict[str, Any]:
        found = super()._inputs(answers)
        if self.source is not None:
            found |= self.source.content()
        if answers is not None and self.samples is not None:
            found[DIRECTION_DATA] = self.samples.estimated_on.content_hash
        return found


@dataclass
class _Steering:
    """The work between the models and the run folder."""

    settings: SteerSettings
    plan: LayerPlan
    samples: Samples
    ready: Directions | None
    notes: list[str]
    read: Answers | None = None

    def prepare(self, bench: Bench) -> Work:
        """Read the samples of the directions, if any are needed, and raise what is wrong with them."""
        # The held-out prompts are read whole, without their own answers: nothing of them was cut or left out.
        bench.notes[:] = [note for note in bench.notes if note not in bench.answers.notes()] + self.notes
        if self.ready is None:
            self.read = self._read_samples(bench)
            bench.notes += [f"To estimate the directions: {note}" for note in self.read.notes()]
        return partial(self._measure, bench)

    def _measure(self, bench: Bench) -> Outcome:
        settings, tuned = self.settings, bench.pair.tuned[0]
        kept = Kept(bench.partial)
        directions = self.ready or self._estimate(bench, kept)
        vectors, blocks = directions.vectors(), self.plan.blocks
        if not any(bool(vectors[block].any()) for block in blocks):
            raise MidblockError(f"base and {tuned.name} have the same states at blocks {self.plan}: nothing to add")
        writing = Writing(bench, settings, kept)
        batches = make_batches(writing.answers().prompts, batch_tokens=settings.batch_tokens)
        base = bench.pair.base.model
        scorer = Scorer(base, batches, vectors, settings.adding, kept, settings.seed, bench.progress)
        plain, target = scorer.nll("nll-base"), scorer.nll("nll-tuned", tuned.model)
        effects = scorer.effects(plain, blocks, settings.alpha, settings.random_draws)
        scan = scorer.scan(plain, settings.scan_alpha, settings.random_draws) if settings.scan else []
        texts = writing.texts(vectors, blocks)
        rows = [*_direction_rows(bench, directions), *_scan_rows(bench, scan)]
        summary = summarize_steering(tuned.name, self.plan, directions, settings, plain, target, effects)
        files: dict[str, Callable[[Path], None]] = {
            "texts.json": lambda path: write_json(path, texts),
            FILE: directions.write,
        }
        return Outcome(rows, summary, files)

    def _estimate(self, bench: Bench, kept: Kept) -> Directions:
        file = None if kept.folder is None else kept.folder / FILE
        if file is not None and file.exists():
            return Directions.read(file)
        read = self.read or self._read_samples(bench)
        found = estimate_directions(
            bench.pair.base,
            bench.pair.tuned[0],
            read.batches,
            region=self.settings.region,
            kind=self.settings.kind,
            components=self.settings.components,
            seed=self.settings.seed,
            progress=bench.progress,
        )
        if file is not None:
            found.write(file)
        return found

    def _read_samples(self, bench: Bench) -> Answers:
        """The samples of the directions as tokens."""
        read = read_answers(bench.pair, self.samples.estimated_on, self.settings)
        fewest = min(len(read.examples), int(bench.pair.base.config.hidden_size))
        if self.settings.kind == "pca" and self.settings.components > fewest:
            what = f"{self.settings.components} principal directions cannot be had from {len(read.examples)} samples"
            raise MidblockError(what, hint=f"--components {fewest}")
        return read


def _direction_rows(bench: Bench, directions: Directions) -> Iterator[LayerRow]:
    for block, direction in enumerate(directions.of):
        values = {
            "steer_norm": direction.norm,
            "steer_norm_relative": direction.norm / direction.base_norm if direction.base_norm else math.nan,
            "steer_explained": direction.explained,
        }
        for metric, value in values.items():
            if not math.isnan(value):  # where the models do not differ
                yield _row(bench, block, metric, Estimate(value, math.nan, math.nan, directions.n))


def _scan_rows(bench: Bench, scan: Sequence[tuple[Estimate, Estimate]]) -> Iterator[LayerRow]:
    for block, (change, control) in enumerate(scan):
        yield _row(bench, block, "steer_nll_change", change)
        yield _row(bench, block, "steer_nll_change.random", control)


def _row(bench: Bench, block: int, metric: str, found: Estimate) -> LayerRow:
    return LayerRow(
        bench.pair.tuned[0].name,
        block,
        bench.pair.blocks,
        metric,
        found.value,
        found.n,
        found.low,
        found.high,
        bench.answers.reference,
    )
