"""`tune`: a base, data and a plan in; an adapter or checkpoint, its card, its log and its table out."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from midblock.base import LayerPlan, LayerTable, MidblockError, Progress, RunFolder, Silent, write_json
from midblock.base.run_folder import peak_memory
from midblock.checkpoints import Checkpoint, LoadSettings, open_checkpoint, quiet_transformers
from midblock.data import ExampleSet
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
from midblock.tuning.examples import TrainingExamples, load_examples
from midblock.tuning.hold import Hold
from midblock.tuning.log_file import LogFile
from midblock.tuning.outputs import Artifact, gradient_rows, moved_rows, save_model
from midblock.tuning.prefix_store import PrefixStore
from midblock.tuning.prepared import Prepared, prepare
from midblock.tuning.references import check_reference
from midblock.tuning.schedule import schedule_of
from midblock.tuning.settings import TuneSettings
from midblock.tuning.sharding import release, shard, world_size
from midblock.tuning.training import Trained, Training, open_store

Announce = Callable[[Mapping[str, Any]], None]
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
    loadable = {each.name for each in fields(LoadSettings)}
    loading = LoadSettings.of({name: value for name, value in options.items() if name in loadable})
    asked = {name: value for name, value in options.items() if name not in loadable}
    settings = TuneSettings.of({**asked, "layers": layers})
    tuning = _Tuning(base, data, settings, loading, Path(output_dir), progress or Silent(), command)
    with quiet_transformers():
        return tuning.run(resume, overwrite, announce)


@dataclass
class _Tuning:
    """One run, from references to files."""

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
        checkpoint = self._open_base()
        plan = _read_plan(self.settings.layers, checkpoint)
        # what is cheap to find wrong is found before the data and the weights are read
        RunFolder.check(self.folder, "tune", self._config(), resume=resume, overwrite=overwrite)
        tokenizer = checkpoint.tokenizer()
        examples = load_examples(self.data, tokenizer, self.settings)
        self.notes += examples.notes
        run, arguments = self._open_folder(checkpoint, examples, resume, overwrite)
        if run.done:
            return _finished(self.folder, self._target)
        start = time.perf_counter()
        loading = replace(self.loading, dtype=weight_dtype(self.settings, self.loading))
        prepared = prepare(checkpoint, plan, self.settings, loading)
        weight_hash = run.record["models"][0]["weight_hash"]
        hold = Hold.of(prepared, self.settings, weight_hash, arguments.device, self.progress)
        self.notes += hold.notes
        key = repr(sorted(run.record["inputs"].items()))
        store = open_store(prepared, examples, self.settings, run.partial / "prefix", key, self.notes)
        planned = self._plan_record(prepared, examples, hold, store)
        if self.settings.shard:
            on = arguments.device
            shard(prepared.model, prepared.causal, prepared.anatomy, on, half(self.settings, self.loading))
        run.record["notes"] = self.notes
        run.add_phase("prepare", time.perf_counter() - start)
        if main_process():
            write_json(self.folder / "plan.json", planned)
            run.save()
            if announce is not None:
                announce(planned)
        training = Training(
            self.folder,
            prepared,
            examples,
            self.settings,
            self.loading,
            hold,
            store,
            arguments,
            tokenizer,
            self.progress,
        )
        with _phase(run, "train"):
            done = training.run()
        planned["frozen_prefix"] |= {"computed": done.prefix.computed, "served": done.prefix.served}
        if self.settings.shard:
            release(prepared.causal)
        return self._save(run, prepared, checkpoint, tokenizer, planned, done)

    @property
    def _target(self) -> Path:
        return self.folder / PATHS[self.settings.method]

    def _open_base(self) -> Checkpoint:
        loading = self.loading
        checkpoint = open_checkpoint(
            self.base, allow_pickle=loading.allow_pickle, trust_remote_code=loading.trust_remote_code
        )
        if checkpoint.adapter is not None:
            raise MidblockError(f"{self.base} is an adapter", hint="midblock export --to merged, then tune that")
        return checkpoint

    def _open_folder(
        self, checkpoint: Checkpoint, examples: TrainingExamples, resume: bool, overwrite: bool
    ) -> tuple[RunFolder, Any]:
        """Join the other processes, if there are any, and open the run folder: the main one writes."""
        config, weight_hash = self._config(), checkpoint.weight_hash()
        inputs = {
            "the data": examples.facts["content_hash"],
            "the weights of the base": weight_hash,
            "the number of processes": world_size(),
        }
        RunFolder.check(self.folder, "tune", config, resume=resume, overwrite=overwrite, inputs=inputs)
        arguments = training_arguments(self.settings, self.loading, self.folder / "checkpoints")
        _ = arguments.device
        barrier()  # nobody may look after the main process has begun to write
        if main_process():
            run = RunFolder.open(self.folder, "tune", config, resume=resume, overwrite=overwrite, inputs=inputs)
            if not run.done:
                self._record(run, checkpoint, examples, weight_hash)
                run.save()
        barrier()
        if not main_process():
            run = RunFolder(self.folder, json.loads((self.folder / "run.json").read_text(encoding="utf-8")))
        return run, arguments

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
        with _phase(run, "save"):
            save_model(prepared, tokenizer, checkpoint, self._target, card, main)
        barrier()
        if not main:
            return Artifact(self.folder, self._target, LayerTable.from_rows([]), (), {})
        lines, blocks, name = done.log.read(), len(prepared.anatomy), self.folder.name
        rows = gradient_rows(lines, name, blocks)
        with _phase(run, "compare"):
            try:
                rows += moved_rows(checkpoint, self._target, name, blocks, self.notes, self.progress)
            except MidblockError as error:  # adapters whose change is more than a product of two factors
                self.notes.append(f"How far weights moved is left out: {error}.")
        table = LayerTable.from_rows(rows)
        table.write(self.folder)
        summary = _summary(lines, planned, done.compared, self._target.name)
        write_json(self.folder / "summary.json", summary)
        write_json(self.folder / "plan.json", planned)
        if self.settings.push_to_hub:
            _push(self._target, self.settings)
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        run.record["notes"] = self.notes
        run.finish()
        return Artifact(self.folder, self._target, table, lines, summary)


def _read_plan(text: str, checkpoint: Checkpoint) -> LayerPlan:
    config: Any = checkpoint.config
    total = config.get_text_config().num_hidden_layers
    if text.startswith("auto:"):
        return plan_from_run(text.removeprefix("auto:"), total)
    return LayerPlan.parse(text, total)


def _summary(
    lines: tuple[Mapping[str, Any], ...], planned: Mapping[str, Any], compared: int, artifact: str
) -> dict[str, Any]:
    last = lines[-1]
    # a single batch says little: the first and the last tenth of the steps, at least one
    few = max(1, len(lines) // 10)
    before, after = ({key: _mean(some, key) for key in ("loss", "nll")} for some in (lines[:few], lines[-few:]))
    headline = (
        f"Blocks {planned['layers']} of {planned['total_blocks']} tuned, {planned['trained_parameters']:,} parameters: "
        f"the loss per target token went from {before['nll']:.3f} to {after['nll']:.3f} nats in {last['step']} steps."
    )
    seconds = max(last["seconds"], 1e-9)
    return {
        "headline": headline,
        "models": [],
        "loss": {"first": before["loss"], "last": after["loss"]},
        "nll": {"first": before["nll"], "last": after["nll"]},
        "steps": last["step"],
        "tokens_per_second": round(last["tokens"] / seconds, 1),
        "peak_memory_mb": round(peak_memory() / 2**20),
        "untouched": {"checked": compared, "changed": 0},
        "artifact": artifact,
    }


def _mean(lines: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(line[key] for line in lines) / len(lines)


def _finished(folder: Path, target: Path) -> Artifact:
    lines = LogFile(folder / "log.jsonl").read()
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return Artifact(folder, target, LayerTable.read(folder), lines, summary)


def _push(target: Path, settings: TuneSettings) -> None:
    from huggingface_hub import HfApi

    hub = HfApi()
    name = settings.hub_model_id or f"{hub.whoami()['name']}/{target.parent.name}"
    hub.create_repo(name, private=settings.hub_private_repo, exist_ok=True)
    hub.upload_folder(repo_id=name, folder_path=str(target), commit_message="Tuned with midblock")


@contextmanager
def _phase(run: RunFolder, name: str) -> Iterator[None]:
    """Time a phase; only the main process writes it down."""
    start = time.perf_counter()
    try:
        yield
    finally:
        run.add_phase(name, time.perf_counter() - start)
        if main_process():
            run.save()
