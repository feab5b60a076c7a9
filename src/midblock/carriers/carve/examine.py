"""Examine: what a finished carrier does, asked of models: the necessity table, its verdicts, and sizes on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from midblock.base import Progress
from midblock.carriers.carve.candidates import candidates_of
from midblock.carriers.carve.contenders import BASE, TUNED, Candidate, Trio, contenders_of
from midblock.carriers.carve.measures import (
    ABILITY,
    BEHAVIOUR,
    Measure,
    divergence_measure,
    loss_measure,
    task_measure,
)
from midblock.carriers.carve.measuring import measure_all
from midblock.carriers.carve.settings import NecessitySettings
from midblock.carriers.carve.table import necessity_frame, necessity_rows, write_necessity
from midblock.carriers.carve.taught import Taught
from midblock.carriers.carve.verdicts import headline_of, verdicts_of
from midblock.carriers.moved import full_bytes, moved
from midblock.checkpoints import Carrier, LoadSettings, Pair, load_model, load_models
from midblock.checkpoints.carrier_file import WEIGHTS
from midblock.data import ExampleSet, TokenizedSet, encode_renderable, load_dataset
from midblock.evaluation import Task, open_task
from midblock.interventions import merge
from midblock.runs.reading import few_note
from midblock.tuning.loop.carve_weights import Examined

MODEL = "model"
NONE = "none"


@dataclass(frozen=True)
class Examination:
    """What is asked of a carrier once it is written.

    Attributes:
        base: the model reference as it was given.
        taught: the behaviour and its data.
    """

    base: str
    taught: Taught
    settings: NecessitySettings
    loading: LoadSettings
    progress: Progress

    @cached_property
    def task(self) -> Task:
        """The behaviour on held-out prompts."""
        return self.taught.task(self.settings.test_samples, self.settings.seed)

    @cached_property
    def ability(self) -> Task | None:
        """A task that tuning was not about."""
        name, settings = self.settings.ability, self.settings
        if name is None or name == NONE:
            return None
        return open_task(name, settings.ability_samples, settings.seed, settings=settings.asking)

    @cached_property
    def general(self) -> ExampleSet:
        """Texts that have nothing to do with the behaviour."""
        return load_dataset(self.settings.general, num_samples=self.settings.general_samples, seed=self.settings.seed)

    def check(self) -> None:
        """Raise MidblockError for data that the table cannot be made of, before anything is trained."""
        self.taught.check(self.settings)
        _ = self.task, self.ability, self.general

    def run(self, target: Path) -> Examined:
        """Measure every contender and judge.

        Args:
            target: the carrier's folder, inside the run's.
        """
        carrier, pair = Carrier.open(target), load_models(self.base, self.settings.tuned, **self.loading.__dict__)
        base, tuned = (variant.model for variant in pair)
        host = load_model(pair.base.checkpoint, pair.base.loading)  # type: ignore[arg-type]
        candidates, notes = candidates_of(carrier, base, tuned, self.settings)
        contenders, measures = contenders_of(candidates), self._measures(pair)
        found, damaged = measure_all(
            Trio(base, host, tuned),
            contenders,
            measures,
            target.parent / "partial" / "necessity",
            [_hash_of(target), self.base, self.settings.tuned, self.settings.seed],
            self.progress,
        )
        rows = necessity_rows(contenders, measures, found, self.settings.seed)
        write_necessity(necessity_frame(rows), target.parent)
        verdicts = verdicts_of(rows, contenders, found, self.settings.seed)
        if self.settings.write_model:
            _write_model(self.base, target)
        summary = {
            "headline": headline_of(verdicts, self.taught.behaviour),
            "behaviour": self.taught.behaviour,
            "verdicts": [verdict.as_record() for verdict in verdicts],
            "measures": [
                {"name": m.name, "title": m.title, "unit": m.unit, "about": m.about, "share": m.share} for m in measures
            ],
            "necessity": [_plain(row) for row in rows],
            "sizes": sizes_of(target, carrier, base, tuned, candidates),
        }
        few = few_note(len(self.task.items), "test prompts")
        return Examined((), summary, [*self._notes(), *notes, *damaged, *few, *_floor_note(rows)])

    def _measures(self, pair: Pair) -> list[Measure]:
        settings, tokenizer = self.settings, pair.tokenizer
        asked = (settings.asking, tokenizer, settings.template)
        found = [task_measure(BEHAVIOUR, f"Shows {self.taught.behaviour}", self.task, *asked)]
        completions = self._tokens(self.task.examples, tokenizer, add_eos=True)
        found.append(loss_measure(completions, self.taught.behaviour, settings.seed))
        general = self._tokens(self.general, tokenizer, add_eos=False)
        found.append(divergence_measure(general, pair.base.model, settings.general, settings.seed))
        if self.ability is not None:
            found.append(task_measure(ABILITY, f"Score on {settings.ability}", self.ability, *asked))
        return found

    def _tokens(self, examples: ExampleSet, tokenizer: Any, *, add_eos: bool) -> TokenizedSet:
        options = {"template": self.settings.template, "max_length": self.settings.max_length, "min_tokens": 2}
        return encode_renderable(examples, tokenizer, **options, add_eos=add_eos)[1]

    def _notes(self) -> list[str]:
        tasks = [self.task, *([self.ability] if self.ability is not None else [])]
        return [*(note for task in tasks for note in task.notes), *self.general.notes()]


def sizes_of(
    target: Path, carrier: Carrier, base: torch.nn.Module, tuned: torch.nn.Module, candidates: Sequence[Candidate]
) -> dict[str, Any]:
    """Bytes: the carrier on disk, the whole change as it would lie there, the model; and the candidates' own."""
    return {
        "carrier_bytes": (target / WEIGHTS).stat().st_size,
        "delta_bytes": full_bytes(base, tuned),
        "model_bytes": sum(value.nbytes for value in base.parameters()),
        "entries": carrier.count,
        "delta_entries": sum(each.before.numel() for each in moved(base, tuned)),
        "candidates": {each.name: each.bytes for each in candidates},
    }


def _floor_note(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know of an ability that nobody has."""
    scores = {row["contender"]: row["value"] for row in rows if row["measure"] == ABILITY}
    if not scores or scores[BASE] or scores[TUNED]:
        return []
    return ["Base and tuned model score 0 on the task that stands for general ability: it tells of no loss."]


def _write_model(base: str, target: Path) -> None:
    """The base with the carrier in it, as a checkpoint of the base's precision; it appears when it is whole."""
    folder = target.parent / MODEL
    merge(base, f"{base}+{target}", 1, output_dir=folder, overwrite=folder.exists())


def _hash_of(target: Path) -> str:
    with (target / WEIGHTS).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """For JSON, which has no NaN."""
    return {name: None if isinstance(value, float) and value != value else value for name, value in row.items()}
