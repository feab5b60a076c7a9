"""The work of erasing: cells are trained, then judged beside the base, the tuned models and the nulls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from midblock.base import Estimate, replace_atomically
from midblock.carriers.erase.cells import Cell, Cells, Trained, prompt_folder
from midblock.carriers.erase.channels import Channels
from midblock.carriers.erase.judging import Judging
from midblock.carriers.erase.relearning import Relearned, relearned
from midblock.carriers.erase.samples import TEST, TRAIN, Asked
from midblock.carriers.erase.settings import RANDOM, EraseSettings
from midblock.carriers.erase.summary import summarize
from midblock.carriers.erase.verdict import Judged, coming_back
from midblock.checkpoints import BASE, Variant
from midblock.evaluation.paired import Marks, paired
from midblock.interventions.steer.kept import KeptValues
from midblock.runs.run import Bench, Outcome, Write

Given = Callable[[], nn.Module]


@dataclass(frozen=True, eq=False)
class Erasing:
    """Everything that is read; `run` does the rest.

    Attributes:
        cells: how cells are trained.
        asked: the cells, the one that the run is about first.
        tokenizer: the one whose ids all models are fed.
    """

    cells: Cells
    asked: list[Cell]
    settings: EraseSettings
    tokenizer: Any

    def run(self, bench: Bench) -> Outcome:
        """Train, then measure."""
        with bench.phase("train"):
            trained = [self.cells.train(cell, bench) for cell in self.asked]
        kept = KeptValues(bench.partial, bench.owner)
        judging = Judging(self.tokenizer, self.settings, kept, bench.progress)
        with bench.phase("measure"):
            models = {name: self._model_record(name, judging) for name in (BASE, *self.cells.tuned)}
            records = [self._cell_record(each, judging) for each in trained]
        with bench.phase("relearn"):
            relearning = self._relearning(trained, judging)
        bench.notes += [*kept.notes, *self._notes()]
        summary = summarize(self.settings, self.asked, models, records, relearning)
        return Outcome((), summary, files=self._files(trained, judging))

    def _model(self, name: str) -> Given:
        variant = self.cells.base if name == BASE else self.cells.tuned[name]
        return lambda: variant.model

    def _model_record(self, name: str, judging: Judging) -> dict[str, Any]:
        """What a model does without a soft prompt."""
        model, seed = self._model(name), self.settings.seed
        record: dict[str, Any] = {
            "name": name,
            "rates": {
                asked.name: judging.shown(name, model, asked).mean(seed).interval.as_record()
                for asked in self.cells.samples.judged
            },
        }
        if name != BASE:
            record["kl_base"] = self._divergences(name, model, BASE, judging)
        if (general := self.cells.samples.general) is not None:
            record["general"] = judging.right(name, model, general).mean(seed).interval.as_record()
        return record

    def _cell_record(self, trained: Trained, judging: Judging) -> dict[str, Any]:
        """What a cell's best soft prompt does, and its nulls, and the other starts."""
        cell, best, seed = trained.cell, trained.best, self.settings.seed
        given, name = self._with(cell, best.best), cell.name
        test = self.cells.samples.kinds[TEST]
        before = judging.shown(cell.model, self._model(cell.model), test)
        nulls = {
            "random": judging.shown(f"{name}-random", self._with(cell, trained.random(seed)), test),
            "start": judging.shown(f"{name}-start", self._with(cell, best.first), test),
        }
        judged = {asked.name: self._judged(cell, given, asked, nulls["random"], judging)
                  for asked in self.cells.samples.judged}  # fmt: skip
        channels = self.cells.channels_of(cell.channels)
        return {
            "model": cell.model,
            "channels": cell.channels,
            "name": name,
            "title": cell.title,
            "matched": _matched(channels, self.cells.base),
            "chosen": trained.chosen,
            "starts": [self._start_record(trained, start, judging, test) for start in range(len(trained.starts))],
            "judged": judged,
            "nulls": {key: Judged.of(before, marks, None, seed) for key, marks in nulls.items()},
            "kl_tuned": self._divergences(name, given, cell.model, judging),
            "kl_base": self._divergences(name, given, BASE, judging),
            "general": self._general(cell, given, judging),
        }

    def _judged(self, cell: Cell, given: Given, asked: Asked, random: Marks, judging: Judging) -> Judged:
        before = judging.shown(cell.model, self._model(cell.model), asked)
        after = judging.shown(cell.name, given, asked)
        return Judged.of(before, after, random if asked.name == TEST else None, self.settings.seed)

    def _start_record(self, trained: Trained, start: int, judging: Judging, test: Asked) -> dict[str, Any]:
        """One start: where J went, and the behaviour's rate with its best prompt."""
        found, cell = trained.starts[start], trained.cell
        name = cell.name if start == trained.chosen else f"{cell.name}-{start}"
        marks = judging.shown(name, self._with(cell, found.best), test)
        return {
            "rate": marks.mean(self.settings.seed).interval.as_record(),
            "best_step": found.best_step,
            "best_loss": found.best_loss,
            "curve": found.curve,
        }

    def _divergences(self, name: str, given: Given, reference: str, judging: Judging) -> dict[str, Any]:
        """KL(reference‖model) by kind of prompts."""
        found = {}
        for asked in self.cells.samples.judged:
            mean = judging.divergence(f"{reference}-{name}", given, self._model(reference), asked)
            found[asked.name] = mean.interval.as_record()
        return found

    def _general(self, cell: Cell, given: Given, judging: Judging) -> dict[str, Any] | None:
        """How many sums are right with the soft prompt, and how many more than without."""
        general, seed = self.cells.samples.general, self.settings.seed
        if general is None:
            return None
        before = judging.right(cell.model, self._model(cell.model), general)
        after = judging.right(cell.name, given, general)
        change = paired(before, after, seed).difference
        return {"right": after.mean(seed).interval.as_record(), "change": change.as_record()}

    def _relearning(self, trained: list[Trained], judging: Judging) -> list[dict[str, Any]]:
        """How soon tuning brings the behaviour back: each model's first cell, against the base."""
        settings, seed = self.settings, self.settings.seed
        if settings.relearn_steps < settings.relearn_every:
            return []
        firsts = {each.cell.model: each for each in reversed(trained)}
        taught, asked = (self.cells.samples.kinds[kind] for kind in (TRAIN, TEST))
        asked = asked.first(settings.relearn_samples)
        plain = relearned(BASE, self._model(BASE), taught, asked, judging)
        found = [_relearned_record(BASE, plain, None, "")]
        for each in reversed(firsts.values()):
            given = self._with(each.cell, each.best.best)
            mine = relearned(each.cell.name, given, taught, asked, judging)
            sooner = paired(plain.first, mine.first, seed).difference
            never = max(max(plain.rates), max(mine.rates)) == 0
            found.append(_relearned_record(each.cell.title, mine, sooner, coming_back(sooner, mine.rates[0], never)))
        return found

    def _with(self, cell: Cell, values: Tensor) -> Given:
        return partial(self.cells.given, cell, values)

    def _notes(self) -> list[str]:
        notes = list(self.cells.samples.notes)
        if any(cell.channels == RANDOM for cell in self.asked) and (share := self.cells.overlap()):
            notes.append(
                f"The carrier writes to most channels: {share:.0%} of the random ones are its own all the same."
            )
        return notes

    def _files(self, trained: list[Trained], judging: Judging) -> dict[str, Write]:
        files: dict[str, Write] = {"outputs.jsonl": partial(_write_lines, list(judging.lines()))}
        for each in trained:
            variant = self.cells.tuned[each.cell.model]
            made: dict[str, Any] = {"behaviour": self.settings.named, "channels": each.cell.channels,
                                    "best_step": each.best.best_step, "best_loss": each.best.best_loss}  # fmt: skip
            hashed = variant.checkpoint.weight_hash() if variant.checkpoint is not None else None
            soft = self.cells.soft(each.cell, each.best.best, hashed, **made)
            files[str(prompt_folder(self.asked, each.cell))] = partial(soft.write, config=variant.config)
        return files


def _matched(channels: Channels, base: Variant) -> dict[str, float]:
    """How many blocks are matched, and the share of the width in them."""
    width = int(base.config.hidden_size)
    share = sum(map(len, channels.values())) / (width * len(channels)) if channels else 0.0
    return {"blocks": len(channels), "share": share}


def _relearned_record(title: str, found: Relearned, sooner: Estimate | None, said: str) -> dict[str, Any]:
    return {
        "title": title,
        "steps": list(found.steps),
        "rates": list(found.rates),
        "first": found.first.mean().interval.as_record(),
        "against_base": None if sooner is None else sooner.as_record(),
        "said": said,
    }


def _write_lines(lines: list[Mapping[str, Any]], path: Path) -> None:
    with replace_atomically(path) as opened:
        opened.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
