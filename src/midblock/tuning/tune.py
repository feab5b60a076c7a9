"""`tune`: a base, data and a plan in; an adapter or checkpoint, its card, its log and its table out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from midblock.base import LayerPlan, LayerTable, MidblockError, Progress, RunFolder, Silent, read_record, write_json
from midblock.base.layer_table import LayerRow
from midblock.checkpoints import Checkpoint, LoadSettings, open_checkpoint, quiet_transformers, split_options
from midblock.data import ExampleSet, local_places
from midblock.tuning.arguments import (
    barrier,
    half,
    main_process,
    refuse_deepspeed,
    training_arguments,
    weight_dtype,
)
from midblock.tuning.auto import plan_from_run
from midblock.tuning.card import model_card
from midblock.tuning.estimate import estimate_memory
from midblock.tuning.examples import TrainingExamples, check_fit, load_examples
from midblock.tuning.gradients import Gradients
from midblock.tuning.hold import Hold
from midblock.tuning.outputs import Artifact, gradient_rows, moved_rows, save_model
from midblock.tuning.prefix_store import PrefixStore
from midblock.tuning.prepared import Prepared, prepare
from midblock.tuning.references import check_reference, check_vocabulary, reference_places
from midblock.tuning.schedule import schedule_of
from midblock.tuning.settings import TuneSettings
from midblock.tuning.sharding import release, shard, world_size
from midblock.tuning.summary import check_uploadable, read_artifact, summarize_tuning, upload
from midblock.tuning.training import Trained, Training, open_store

Announce = Callable[[Mapping[str, Any]], None]
BASE_WEIGHTS = "the weights of the base"
PATHS = {"lora": "adapter", "full": "model"}


def tune(
    base: str,
    data: str | ExampleSet,
    layers: str = "all",
    *,
    output_dir: Path | str,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    announce: Announce | None = None,
    command: str | None = None,
    **options: Any,
) -> Artifact:
    """Fine-tune chosen blocks of a model on completions.

    Args:
        base: a model reference.
        data: a dataset reference, or examples already loaded.
        layers: the blocks, in any notation of `LayerPlan`, or `auto:RUN` from an analysis.
        output_dir: the run folder to write.
        resume, overwrite: what to do with a folder that is there.
        progress: told how far it got.
        announce: given the plan (as in `plan.json`) before training starts.
        command: how it was called, recorded.
        **options: fields of `TuneSettings` and `LoadSettings`.

    Returns:
        The result: where it lies, its log and its table.

    Raises:
        MidblockError: anything the user can mend; checkpoints written until then stay for `resume`.
    """
    loading, asked = split_options(options)
    settings = TuneSettings.of({**asked, "layers": layers})
    tuning = Tuning(base, data, settings, loading, Path(output_dir).expanduser(), progress or Silent(), command)
    with quiet_transformers():
        return tuning.run(resume, overwrite, announce)


@dataclass
class Tuning:
    """One run, from references to files."""

    verb: ClassVar[str] = "tune"

    base: str
    data: str | ExampleSet
    settings: TuneSettings
    loading: LoadSettings
    folder: Path
    progress: Progress
    command: str | None
    notes: list[str] = field(default_factory=list)

    def run(self, resume: bool, overwrite: bool, announce: Announce | None) -> Artifact:
        if self.loading.device_map is not None:
            raise MidblockError("training takes no device map", hint="torchrun … --shard splits a model")
        refuse_deepspeed()
        check_reference(self.settings, self.base)
        check_uploadable(self.settings)
        checkpoint = self._open_base()
        check_vocabulary(self.settings, self.loading, checkpoint)
        plan = _read_plan(self.settings.layers, checkpoint)
        # what is cheap to find wrong is found before data and weights are read, all of it before anything is written
        where: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "sources": self._sources(checkpoint)}
        RunFolder.check(self.folder, self.verb, self._config(), **where)
        tokenizer = checkpoint.tokenizer()
        examples = load_examples(self.data, tokenizer, self.settings)
        self.notes += examples.notes
        self.notes += check_fit(examples, checkpoint.config)
        inputs = _inputs(checkpoint, examples)
        where["inputs"] = inputs
        earlier = RunFolder.check(self.folder, self.verb, self._config(), **where)
        if earlier is not None and earlier.get("status") == "done":
            return self._read_back()
        arguments = training_arguments(self.settings, self.loading, self.folder / "checkpoints")
        start = time.perf_counter()
        prepared, hold = self._prepare(checkpoint, plan, inputs[BASE_WEIGHTS], arguments.device)
        barrier()  # nobody may look at the folder after the main process has begun to write
        run = self._open_folder(checkpoint, examples, **where)
        place = run.partial / "prefix"
        store = open_store(prepared, examples, self.settings, place, repr(sorted(inputs.items())), self.notes)
        planned = self._plan_record(prepared, examples, hold, store)
        run.record["notes"] = self.notes
        run.add_phase("prepare", time.perf_counter() - start)
        if main_process():
            write_json(self.folder / "plan.json", planned)
            run.save()
            if announce is not None:
                announce(planned)
        # in the order of the fields of Training
        parts = (self.settings, self.loading, hold, store, arguments, tokenizer, self.progress)
        with phase(run, "train"):
            done = Training(self.folder, prepared, examples, *parts, self._on_gradients).run()
        planned["frozen_prefix"] |= {"computed": done.prefix.computed, "served": done.prefix.served}
        if self.settings.shard:
            release(prepared.causal)
        return self._save(run, prepared, checkpoint, tokenizer, planned, done)

    def _prepare(
        self, checkpoint: Checkpoint, plan: LayerPlan, weight_hash: str, device: torch.device
    ) -> tuple[Prepared, Hold]:
        """Load the base, make the planned parameters trainable, factorise what is held on to, and share it out."""
        loading = replace(self.loading, dtype=weight_dtype(self.settings, self.loading))
        prepared = prepare(checkpoint, plan, self.settings, loading)
        hold = Hold.of(prepared, self.settings, weight_hash, device, self.progress)
        self.notes += hold.notes
        if self.settings.shard:
            computing = half(self.settings, self.loading)
            shard(prepared.model, prepared.causal, prepared.anatomy, device, computing)
        return prepared, hold

    @property
    def _target(self) -> Path:
        return self.folder / PATHS[self.settings.method]

    def _on_gradients(self, gradients: Gradients) -> None:
        """Look at the gradients before each step of the optimiser."""

    def _read_back(self) -> Artifact:
        artifact = read_artifact(self.folder, self._target)
        self._upload()
        return artifact

    def _upload(self) -> None:
        if self.settings.push_to_hub and main_process():
            upload(self._target, self.settings)

    def _open_base(self) -> Checkpoint:
        loading = self.loading
        checkpoint = open_checkpoint(
            self.base, allow_pickle=loading.allow_pickle, trust_remote_code=loading.trust_remote_code
        )
        if checkpoint.adapter is not None:
            raise MidblockError(f"{self.base} is an adapter", hint="midblock export --to merged, then tune that")
        return checkpoint

    def _open_folder(self, checkpoint: Checkpoint, examples: TrainingExamples, **where: Any) -> RunFolder:
        """Open the run folder: the main process writes it, the others read what it wrote."""
        if main_process():
            run = RunFolder.open(self.folder, self.verb, self._config(), **where)
            self._record(run, checkpoint, examples, where["inputs"][BASE_WEIGHTS])
            run.save()
        barrier()
        if not main_process():
            run = RunFolder(self.folder, read_record(self.folder))
        return run

    def _sources(self, checkpoint: Checkpoint) -> list[Path]:
        """Files and folders that are read."""
        layers, models = self.settings.layers, [*checkpoint.places, *reference_places(self.settings, self.loading)]
        analysed = [Path(layers.removeprefix("auto:"))] if layers.startswith("auto:") else []
        return [*models, *local_places(self.data), *analysed]

    def _config(self) -> dict[str, Any]:
        """Everything that decides the result, as the YAML of the run folder."""
        named = {"data": self.data} if isinstance(self.data, str) else {}
        settings = {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.settings).items()
        }
        loading = {key: value for key, value in asdict(self.loading).items() if key != "device_map"}
        return {"base": self.base, **named, **settings, **loading}

    def _record(self, run: RunFolder, checkpoint: Checkpoint, examples: TrainingExamples, weight_hash: str) -> None:
        if isinstance(self.data, ExampleSet):
            given = f"The examples were given in memory ({self.data.reference}): config.yaml names no data."
            self.notes.append(given)
        base = {"name": "base", "role": "base", "reference": checkpoint.reference.text, "weight_hash": weight_hash}
        run.record |= {"seed": self.settings.seed, "data": dict(examples.facts), "models": [base]}
        if self.command:
            run.record["command"] = self.command

    def _plan_record(
        self, prepared: Prepared, examples: TrainingExamples, hold: Hold, store: PrefixStore | None
    ) -> dict[str, Any]:
        cache = store.bytes if store else 0
        longest = examples.facts["longest"]
        memory = estimate_memory(prepared, self.settings, longest, anchor_bytes=hold.bytes, cache_bytes=cache)
        return {
            **prepared.as_record(self.settings),
            "memory": memory,
            "anchor": hold.as_record(),
            "schedule": schedule_of(self.settings, examples),
            "frozen_prefix": {"blocks": prepared.first, "cached": store is not None, "bytes": cache},
            "notes": list(self.notes),
        }

    def _save(
        self,
        run: RunFolder,
        prepared: Prepared,
        checkpoint: Checkpoint,
        tokenizer: Any,
        planned: dict[str, Any],
        done: Trained,
    ) -> Artifact:
        main = main_process()
        card = model_card(self.settings, checkpoint, run.record, planned, self.command) if main else ""
        with phase(run, "save"):
            save_model(prepared, tokenizer, checkpoint, self._target, card, main)
        barrier()
        if not main:
            return Artifact(self.folder, self._target, LayerTable.from_rows([]), (), {})
        lines = done.log.read()
        rows = gradient_rows(lines, self.folder.name, len(prepared.anatomy))
        table = LayerTable.from_rows(rows + self._moved(run, checkpoint, len(prepared.anatomy)))
        table.write(self.folder)
        summary = summarize_tuning(lines, planned, done.compared, self._target.name)
        write_json(self.folder / "summary.json", summary)
        write_json(self.folder / "plan.json", planned)
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        run.record["notes"] = self.notes
        run.finish()
        self._upload()
        return Artifact(self.folder, self._target, table, lines, summary)

    def _moved(self, run: RunFolder, checkpoint: Checkpoint, blocks: int) -> list[LayerRow]:
        with phase(run, "compare"):
            try:
                return moved_rows(checkpoint, self._target, self.folder.name, blocks, self.notes, self.progress)
            except MidblockError as error:  # adapters whose change is more than a product of two factors
                self.notes.append(f"How far weights moved is left out: {error}.")
                return []


def _inputs(checkpoint: Checkpoint, examples: TrainingExamples) -> dict[str, Any]:
    """What must be the same for a run to be resumed."""
    return {
        "the data": examples.facts["content_hash"],
        BASE_WEIGHTS: checkpoint.weight_hash(),
        "the number of processes": world_size(),
    }


def _read_plan(text: str, checkpoint: Checkpoint) -> LayerPlan:
    config: Any = checkpoint.config
    total = config.get_text_config().num_hidden_layers
    if text.startswith("auto:"):
        return plan_from_run(text.removeprefix("auto:"), total)
    return LayerPlan.parse(text, total)


@contextmanager
def phase(run: RunFolder, name: str) -> Iterator[None]:
    """Time a phase; only the main process writes it down."""
    start = time.perf_counter()
    try:
        yield
    finally:
        run.add_phase(name, time.perf_counter() - start)
        if main_process():
            run.save()
