"""`analyze`: a pair of models and a dataset in, a LayerTable out; the one function of this room that takes models."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from midblock.base import LayerPlan, LayerRow, LayerTable, MidblockError, Progress, RunFolder, Silent, write_json
from midblock.checkpoints import Pair, Variant, quiet_transformers
from midblock.data import ExampleSet
from midblock.metrics.catalogue import METRICS, choose
from midblock.metrics.evaluate import Evaluation
from midblock.metrics.measure import Measurement, total_tokens
from midblock.metrics.prompts import Prompts, prepare_prompts
from midblock.metrics.settings import AnalysisSettings
from midblock.metrics.summary import summarize
from midblock.metrics.views import VIEW_METRICS
from midblock.metrics.weight_comparison import WeightComparison, tensors_of

DEFAULT_DATA = "builtin:gsm_symbolic"


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
        The table: every metric of every model at every layer, with intervals, nulls and noise floors.

    Raises:
        MidblockError: anything the user can mend; what was measured until then stays for `resume`.
    """
    settings = AnalysisSettings.of(options)
    analysis = _Analysis(pair, data, settings, progress or Silent())
    if output_dir is None:
        return analysis.run(None)
    if not (resume and (Path(output_dir) / "layers.parquet").exists()):
        # What can fail on the user's side fails before an older run is overwritten.
        analysis.prepare()
    run = RunFolder.open(output_dir, "analyze", analysis.config(), resume=resume, overwrite=overwrite)
    if run.done:
        return LayerTable.read(run.path)
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
        self.prompts: Prompts | None = None
        self.preparing = 0.0
        self.notes = list(pair.notes())
        if not whole:
            self.notes.append(f"Only blocks {plan} were measured.")

    def config(self) -> dict[str, Any]:
        """Everything that decides the numbers, as the YAML of the run folder."""
        data = self.data if isinstance(self.data, str) else f"{self.data.reference} ({self.data.content_hash[:12]})"
        loading = asdict(self.pair.base.loading)
        models = {"base": self.pair.base.reference, "tuned": [variant.reference for variant in self.pair.tuned]}
        read = {} if self.settings.weights_only else {"data": data}
        return {**models, **read, **asdict(self.settings), **loading}

    def run(self, run: RunFolder | None) -> LayerTable:
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
            run.record["models"] = [_describe(variant) for variant in self.pair]
            run.record["notes"] = self.notes
        return LayerTable.from_rows(rows)

    def prepare(self) -> None:
        """Draw and tokenise the prompts and load the models, unless that is done or not needed."""
        if self.settings.weights_only or not self.kinds or self.prompts is not None:
            return
        start = time.perf_counter()
        self.prompts = prepare_prompts(self.pair, self.data, self.settings, views="views" in self.kinds)
        loading = self.progress.phase("loading models", 1 + len(self.pair.tuned))
        for variant in self.pair:
            variant.model.eval()
            loading(1)
        self.preparing = time.perf_counter() - start

    def _states(self, run: RunFolder | None) -> list[LayerRow]:
        self.prepare()
        kinds, prompts = self.kinds, self.prompts
        if prompts is None:
            return []
        if run:
            run.add_phase("prepare", self.preparing)
            run.record["data"] = dict(prompts.facts)
            write_json(run.path / "samples.json", [{"prompt": text} for text in prompts.samples])
            run.save()
        measurement = Measurement(
            self.pair, prompts, self.settings, kinds, self.layers, partial=run.partial if run else None
        )
        with _phase(run, "measure"), quiet_transformers():
            measured = measurement.run(self.progress.phase("measuring", total_tokens(prompts)))
        with _phase(run, "evaluate"):
            models = [variant.name for variant in self.pair.tuned]
            evaluation = Evaluation(
                measured, models, self.wanted, self.layers, self.pair.blocks, prompts.reference, self.settings.seed
            )
            advance = self.progress.phase("intervals and nulls", len(self.layers))
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


def _describe(variant: Variant) -> Mapping[str, Any]:
    role = "base" if variant.name == "base" else "tuned"
    described: dict[str, Any] = {"name": variant.name, "role": role, "reference": variant.reference}
    if variant.checkpoint is not None:
        described["weight_hash"] = variant.checkpoint.weight_hash()
    if variant.loaded is not None:
        described["dtype"] = str(next(variant.loaded.parameters()).dtype).removeprefix("torch.")
        described["parameters"] = sum(value.numel() for value in variant.loaded.parameters())
    return described


def _phase(run: RunFolder | None, name: str) -> Any:
    return run.phase(name) if run else nullcontext()
