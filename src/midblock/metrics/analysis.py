"""`analyze`: a pair of models and a dataset in, a LayerTable out; the one function of this room that takes models."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from midblock.base import LayerPlan, LayerRow, LayerTable, MidblockError, Progress, RunFolder, Silent, write_json
from midblock.checkpoints import Pair, Variant, quiet_transformers
from midblock.data import ExampleSet, local_places
from midblock.metrics.catalogue import METRICS, choose
from midblock.metrics.evaluate import Evaluation
from midblock.metrics.measure import Measured, Measurement, is_dispatched, total_tokens
from midblock.metrics.prompts import Prompts, prepare_prompts
from midblock.metrics.samples import draw_samples, sample_rows, spread_rows
from midblock.metrics.settings import AnalysisSettings
from midblock.metrics.summary import summarize
from midblock.metrics.views import VIEW_METRICS
from midblock.metrics.weight_comparison import WeightComparison, tensors_of

DEFAULT_DATA = "builtin:gsm_symbolic"
Advance = Callable[[float], None]


def analyze(
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
    """Measure, layer by layer, what tuning did.

    Args:
        pair: from `load_pair` or `Pair.of_models`.
        data: a dataset reference, or examples already loaded; unused with `weights_only=True`.
        output_dir: a run folder to write (tables, summary, how it was made); None writes nothing.
        resume, overwrite: what to do with a folder that is there.
        progress: told how far it got.
        command: how it was called, recorded.
        **options: fields of `AnalysisSettings`.

    Returns:
        The table: every metric of every model at every layer, with intervals, nulls and noise floors. With several
        `seeds` that is the first sample of prompts; the others are METRIC.seed1, …, the spread over all METRIC.seeds.

    Raises:
        MidblockError: anything the user can mend; what was measured until then stays for `resume`.
    """
    settings = AnalysisSettings.of(options)
    analysis = _Analysis(pair, data, settings, progress or Silent())
    with analysis.models_lent():
        if output_dir is None:
            return analysis.run(None)
        # What can fail on the user's side fails before an older run is overwritten: this first, it takes no time.
        undecided, config, inputs = analysis.undecided(), analysis.config(), analysis.inputs()
        sources = pair.places if settings.weights_only else [*pair.places, *local_places(data)]
        behaviour: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "sources": sources}
        earlier = RunFolder.check(output_dir, "analyze", config, **behaviour, inputs=inputs, undecided=undecided)
        if earlier is not None:
            analysis.check_resumable()
            if earlier.get("status") == "done":
                return LayerTable.read(Path(output_dir))
        analysis.prepare()
        run = RunFolder.open(output_dir, "analyze", analysis.config(), **behaviour, inputs=analysis.inputs())
        run.record.setdefault("command", command or "midblock.analyze(…)")
        table = analysis.run(run)
        with run.phase("write"):
            table.write(run.path)
            write_json(run.path / "summary.json", summarize(table))
        run.finish()
        return table


class _Analysis:
    """One analysis under way; it collects what the run folder records."""

    def __init__(self, pair: Pair, data: str | ExampleSet, settings: AnalysisSettings, progress: Progress) -> None:
        self.pair, self.data, self.settings, self.progress = pair, data, settings, progress
        self.wanted = frozenset(choose(settings.metrics))
        plan = LayerPlan.parse(settings.layers, pair.blocks)
        whole = len(plan.blocks) == pair.blocks
        self.layers = tuple(range(-1, pair.blocks + 1)) if whole else plan.blocks
        self.kinds = _kinds(self.wanted, settings)
        self.samples: tuple[Prompts, ...] = ()
        self.preparing = 0.0
        self.training: dict[nn.Module, bool] = {}
        self.notes = list(pair.notes())
        if not whole:
            self.notes.append(f"Only blocks {plan} were measured.")
        if isinstance(data, ExampleSet) and not settings.weights_only:
            self.notes.append(f"The prompts were given in memory ({data.reference}): config.yaml names no data.")

    def config(self) -> dict[str, Any]:
        """Everything that decides the numbers, as the YAML of the run folder."""
        loading = asdict(self.pair.base.loading)
        models = {"base": self.pair.base.reference, "tuned": [variant.reference for variant in self.pair.tuned]}
        named = isinstance(self.data, str) and not self.settings.weights_only
        read = {"data": self.data} if named else {}
        settings = asdict(self.settings)
        if self.samples and named:
            settings["split"] = self.samples[0].facts["split"] or None
        return {**models, **read, **settings, **loading}

    def undecided(self) -> tuple[str, ...]:
        """Settings of the config that only reading the data decides."""
        return ("split",) if not self.samples and self.settings.split is None else ()

    def inputs(self) -> dict[str, Any]:
        """What tells a change of the files that are read: a hash of the data, size and age of the weights."""
        found: dict[str, Any] = {
            f"the weights of {variant.name}": variant.files() for variant in self.pair if variant.checkpoint is not None
        }
        if isinstance(self.data, ExampleSet):
            return found if self.settings.weights_only else found | {"the data": self.data.content_hash}
        hashes = self._content_hashes()
        return found | {"the data": hashes if len(hashes) > 1 else hashes[0]} if hashes else found

    def _content_hashes(self) -> list[str]:
        return [prompts.facts["content_hash"] for prompts in self.samples]

    def check_resumable(self) -> None:
        """Raise MidblockError for models in memory, which nothing says are those of the earlier run."""
        for variant in self.pair:
            if variant.checkpoint is None:
                what = f"{variant.name} is a model in memory, so an earlier run cannot be resumed"
                raise MidblockError(what, hint="--overwrite measures it anew")

    @contextmanager
    def models_lent(self) -> Iterator[None]:
        """On leaving, put models back into the mode they came in; a lack of memory is told as what it is."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            hint = "lower --batch-tokens, or try --dtype bfloat16, --device-map auto or --no-precision-floor"
            raise MidblockError("out of memory on the accelerator", hint=f"{hint}; --resume goes on") from error
        finally:
            for module, training in self.training.items():
                module.training = training

    def run(self, run: RunFolder | None) -> LayerTable:
        """Measure states and weights as asked; `run`, if there is one, gets the facts and the pieces."""
        rows: list[LayerRow] = []
        if run:
            run.record["seed"] = self.settings.seed
        if not self.settings.weights_only:
            rows += self._states(run)
        if self.settings.weights_only or self.settings.weights:
            rows += self._weights(run)
        if not rows:
            raise MidblockError("nothing to measure", hint="the metrics asked for need what was switched off")
        if run:
            run.record["models"] = [variant.as_record() for variant in self.pair]
            run.record["notes"] = self.notes
        return LayerTable.from_rows(rows)

    def prepare(self) -> None:
        """Draw and tokenise the prompts and load the models, unless that is done or not needed."""
        if self.settings.weights_only or not self.kinds or self.samples:
            return
        start = time.perf_counter()
        drawn = draw_samples(self.data, self.settings)
        views = "views" in self.kinds
        self.samples = tuple(prepare_prompts(self.pair, sample, self.settings, views=views) for sample in drawn)
        loading = self.progress.phase("loading models", 1 + len(self.pair.tuned))
        for variant in self.pair:
            self.training |= {module: module.training for module in variant.model.modules()}
            variant.model.eval()
            loading(1)
        if "floor" in self.kinds and is_dispatched(self.pair.base.model):
            self.kinds -= {"floor"}
            self.notes.append("No precision floor: the base is spread over several devices.")
        self.notes += _prompt_notes(self.data, self.samples)
        self.preparing = time.perf_counter() - start

    def _states(self, run: RunFolder | None) -> list[LayerRow]:
        self.prepare()
        if not self.samples:
            return []
        if run:
            self._record_data(run)
        measuring = self.progress.phase("measuring", sum(total_tokens(prompts) for prompts in self.samples))
        evaluating: Advance | None = None
        samples: list[list[LayerRow]] = []
        for number, prompts in enumerate(self.samples):
            with _phase(run, "measure"), quiet_transformers():
                measured = self._measurement(number, prompts, run).run(measuring)
            evaluating = evaluating or self.progress.phase("intervals and nulls", len(self.layers) * len(self.samples))
            with _phase(run, "evaluate"):
                samples.append(self._evaluate(number, measured, evaluating))
        rows = samples[0]
        if len(samples) > 1:
            others = [sample_rows(each, number) for number, each in enumerate(samples[1:], start=1)]
            rows = [*rows, *chain.from_iterable(others), *spread_rows(samples)]
        return rows

    def _record_data(self, run: RunFolder) -> None:
        first, hashes = self.samples[0], self._content_hashes()
        run.add_phase("prepare", self.preparing)
        run.record["data"] = {**first.facts, **({"content_hashes": hashes} if len(hashes) > 1 else {})}
        write_json(run.path / "samples.json", [{"prompt": text} for text in first.samples])
        run.save()

    def _measurement(self, number: int, prompts: Prompts, run: RunFolder | None) -> Measurement:
        # Sample 0 alone has references; its pieces lie where those of a single sample would.
        kinds = self.kinds if number == 0 else self.kinds - {"floor"}
        partial = run.partial if run else None
        if partial and number:
            partial /= f"seed{number}"
        return Measurement(self.pair, prompts, self.settings, kinds, self.layers, partial=partial)

    def _evaluate(self, number: int, measured: Measured, advance: Advance) -> list[LayerRow]:
        evaluation = Evaluation(
            measured,
            [variant.name for variant in self.pair.tuned],
            self.wanted,
            self.layers,
            self.pair.blocks,
            self.samples[number].reference,
            self.settings.seed,
            references=number == 0,
        )
        return list(evaluation.rows(advance))

    def _weights(self, run: RunFolder | None) -> list[LayerRow]:
        wanted = frozenset(name for name in self.wanted if METRICS[name].source == "weights")
        if not wanted:
            return []
        rows: list[LayerRow] = []
        with _phase(run, "weights"):
            sizes = [_entries(self.pair.base)] * len(self.pair.tuned)
            advance = self.progress.phase("comparing weights", sum(sizes))
            for variant in self.pair.tuned:
                comparison = WeightComparison(
                    self.pair.base,
                    variant,
                    self.pair.blocks,
                    wanted,
                    frozenset(self.layers),
                    self.settings.subspace_rank,
                    self.settings.exact_spectra,
                    self.notes,
                )
                rows += comparison.rows(advance)
        return rows


def _kinds(wanted: frozenset[str], settings: AnalysisSettings) -> frozenset[str]:
    """What the measuring pass must collect for the metrics asked for."""
    sources = {METRICS[name].source for name in wanted}
    kinds = {"pooled", "tokens", "lens"} & sources
    if settings.num_token_samples == 0:
        kinds -= {"tokens", "lens"}
    if not wanted.isdisjoint(VIEW_METRICS):
        kinds.add("views")
    paired = any(METRICS[name].paired and METRICS[name].source in kinds for name in wanted)
    if paired and settings.precision_floor and settings.num_token_samples >= 4:
        kinds.add("floor")
    return frozenset(kinds)


def _entries(variant: Variant) -> int:
    tensors = tensors_of(variant)
    total = 0
    for name in tensors.names:
        count = 1
        for side in tensors.shape(name):
            count *= side
        total += count
    return total


def _prompt_notes(data: str | ExampleSet, samples: Sequence[Prompts]) -> list[str]:
    notes = list(samples[0].notes())
    for number, prompts in enumerate(samples[1:], start=1):
        notes += [f"Sample {number}: {note}" for note in prompts.notes()]
    if isinstance(data, ExampleSet) and len(samples) > 1:
        size = samples[0].facts["asked"]
        notes.append(f"The {len(data)} prompts in memory were parted into {len(samples)} samples of {size}.")
    return notes


def _phase(run: RunFolder | None, name: str) -> Any:
    return run.phase(name) if run else nullcontext()
