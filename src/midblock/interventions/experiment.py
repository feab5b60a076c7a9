"""The run folder of an intervention: opened, resumed, recorded and written the same way for every verb."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from midblock.base import LayerRow, LayerTable, MidblockError, Progress, RunFolder, Silent, write_json
from midblock.checkpoints import Pair, quiet_transformers
from midblock.data import ExampleSet, local_places
from midblock.interventions.exits import check_head
from midblock.interventions.reading import Answers, ReadingSettings, read_answers
from midblock.trace import Pieces, RowStore

FEW = 24  # examples from which 93 % of the bootstrap intervals hold the truth
Step = Callable[[], None]


def run_steps(steps: Sequence[tuple[float, Step]], store: RowStore, bench: Bench, title: str) -> None:
    """Do what is left to do; what a step puts into the store is saved piece by piece.

    Args:
        steps: each with its cost; the same ones in a run that is resumed.
    """
    pieces = Pieces(store, bench.partial)
    done = pieces.restore()
    advance = bench.progress.phase(title, sum(cost for cost, _ in steps))
    for number, (cost, step) in enumerate(steps, start=1):
        if number > done:
            step()
            pieces.step(number, last=number == len(steps))
        advance(cost)


@dataclass(frozen=True)
class Outcome:
    """What an intervention found.

    Attributes:
        rows: for the LayerTable.
        summary: `summary.json`; holds a `headline`.
        files: what else goes into the run folder: name → a function that writes it to the path it is given.
    """

    rows: Sequence[LayerRow]
    summary: Mapping[str, Any]
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)


Work = Callable[[], Outcome]


@dataclass
class Bench:
    """What an intervention works with.

    Attributes:
        pair: the models, in evaluation mode while it lasts.
        answers: what they read.
        partial: folder for the state of an unfinished run, None to keep it in memory.
        progress: told how far it got.
        notes: what a reader of the results must know; an intervention adds its own.
    """

    pair: Pair
    answers: Answers
    partial: Path | None
    progress: Progress
    notes: list[str]


@dataclass
class Experiment:
    """One intervention, from references to files.

    Attributes:
        verb: the command's name.
        settings: everything that decides the numbers, besides models and data.
        references: the models as the command's arguments name them, for config.yaml; by default `base` and the list
            `tuned`.
    """

    verb: str
    pair: Pair
    data: str | ExampleSet
    settings: ReadingSettings
    progress: Progress | None = None
    command: str | None = None
    references: Mapping[str, Any] | None = None

    def run(
        self,
        prepare: Callable[[Bench], Work],
        *,
        output_dir: Path | str | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> LayerTable:
        """Measure and write; without `output_dir` only measure.

        Args:
            prepare: gives the work; raises MidblockError where models or data do not fit, before anything is written.
            output_dir: the run folder.
            resume, overwrite: what to do with a folder that is there.

        Raises:
            MidblockError: anything the user can mend; nothing was written, or what was measured stays for `resume`.
        """
        if output_dir is None:
            with self._models_lent(), quiet_transformers():
                return LayerTable.from_rows(prepare(self._bench(None))().rows)
        folder = Path(output_dir).expanduser()
        behaviour: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "sources": self._sources()}
        # what can fail on the user's side fails before an older run is overwritten
        earlier = RunFolder.check(folder, self.verb, self._config(), **behaviour, inputs=self._inputs(None))
        if earlier is not None:
            self._check_resumable()
            if earlier.get("status") == "done":
                return LayerTable.read(folder)
        with self._models_lent():
            bench = self._bench(folder / "partial")
            work = prepare(bench)
            inputs = self._inputs(bench.answers)
            run = RunFolder.open(folder, self.verb, self._config(), **behaviour, inputs=inputs)
            self._record(run, bench)
            with run.phase("measure"), quiet_transformers():
                outcome = work()
            run.record["models"] = self._models()
            return _write(run, outcome, bench.notes)

    def _config(self) -> dict[str, Any]:
        """Everything that decides the numbers, as the YAML of the run folder."""
        tuned = [variant.reference for variant in self.pair.tuned]
        models = self.references or {"base": self.pair.base.reference, **({"tuned": tuned} if tuned else {})}
        named = {"data": self.data} if isinstance(self.data, str) else {}
        settings = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.settings).items()}
        return {**models, **named, **settings, **asdict(self.pair.base.loading)}

    def _models(self) -> list[dict[str, Any]]:
        """What `run.json` says about the models."""
        described = [variant.as_record() for variant in self.pair]
        if not self.pair.tuned:
            del described[0]["role"]  # a lone model is neither base nor tuned
        return described

    def _sources(self) -> list[Path]:
        """Files and folders that are read."""
        return [*self.pair.places, *local_places(self.data)]

    def _inputs(self, answers: Answers | None) -> dict[str, Any]:
        """What tells a change of the files that are read."""
        found: dict[str, Any] = {
            f"the weights of {variant.name}": variant.files() for variant in self.pair if variant.checkpoint is not None
        }
        if answers is not None:
            found["the data"] = answers.facts["content_hash"]
        elif isinstance(self.data, ExampleSet):
            found["the data"] = self.data.content_hash
        return found

    def _check_resumable(self) -> None:
        for variant in self.pair:
            if variant.checkpoint is None:
                what = f"{variant.name} is a model in memory, so an earlier run cannot be resumed"
                raise MidblockError(what, hint="--overwrite measures it anew")

    def _bench(self, partial: Path | None) -> Bench:
        answers = read_answers(self.pair, self.data, self.settings)
        advance = (self.progress or Silent()).phase("loading models", 1 + len(self.pair.tuned))
        for variant in self.pair:
            variant.model.eval()
            check_head(variant.name, variant.model, answers.batches[0])
            advance(1)
        notes = [*self.pair.notes(), *answers.notes()]
        if (count := len(answers.examples)) < FEW:
            notes.append(
                f"Bootstrap intervals from {count} examples are too narrow; from {FEW} on they are close to 95 %."
            )
        if isinstance(self.data, ExampleSet):
            notes.append(f"The examples were given in memory ({self.data.reference}): config.yaml names no data.")
        return Bench(self.pair, answers, partial, self.progress or Silent(), notes)

    @contextmanager
    def _models_lent(self) -> Iterator[None]:
        """Put models that were there before back into the mode they came in; tell a lack of memory as what it is."""
        given = [variant.loaded for variant in self.pair if variant.loaded is not None]
        modes: dict[nn.Module, bool] = {module: module.training for model in given for module in model.modules()}
        try:
            yield
        except torch.OutOfMemoryError as error:
            hint = "lower --batch-tokens, or try --dtype bfloat16 or --device-map auto; --resume goes on"
            raise MidblockError("out of memory on the accelerator", hint=hint) from error
        finally:
            for module, training in modes.items():
                module.training = training

    def _record(self, run: RunFolder, bench: Bench) -> None:
        run.record |= {"seed": self.settings.seed, "data": dict(bench.answers.facts)}
        run.record.setdefault("command", self.command or f"midblock.{self.verb}(…)")
        run.save()


def _write(run: RunFolder, outcome: Outcome, notes: list[str]) -> LayerTable:
    table = LayerTable.from_rows(outcome.rows)
    run.record["notes"] = notes
    with run.phase("write"):
        for name, write in outcome.files.items():
            write(run.path / name)
        table.write(run.path)
        write_json(run.path / "summary.json", outcome.summary)
    run.finish()
    return table
