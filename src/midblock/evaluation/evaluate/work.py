"""The work of an evaluation: models one by one through all tasks, then what their answers say of each other.

Only the reference stays in memory beside the model that is asked, and only where predictions are compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from midblock.base import Estimate
from midblock.base.progress import Advance
from midblock.base.seal import fingerprint
from midblock.checkpoints import Pair, Variant
from midblock.evaluation.encoded_prompts import encode_prompts, stop_tokens
from midblock.evaluation.evaluate.asking import Within, ask, rounds_of
from midblock.evaluation.evaluate.forgetting import (
    KLS,
    averaged,
    batches_of,
    divergence,
    estimate_of,
    forgetting_row,
    weight_drift,
)
from midblock.evaluation.evaluate.headline import headline, notes_on
from midblock.evaluation.evaluate.kept import KeptSteps, Rows
from midblock.evaluation.evaluate.result import Evaluation
from midblock.evaluation.evaluate.settings import EvaluateSettings
from midblock.evaluation.evaluate.tables import Answers, Compared, compare, comparison_rows, score_rows
from midblock.evaluation.inspect_log import write_inspect_log
from midblock.evaluation.padding import padding_of, padding_shows
from midblock.evaluation.paired import ALPHA
from midblock.evaluation.task import Item, Scored, Subject, Task, examples_of
from midblock.runs.run import Bench, Outcome
from midblock.runs.sharing import shared, shared_rows
from midblock.runs.stopping import STOPPING

DRIFT = "drift"
PADDING = "{} writes otherwise behind padding, so its batches hold prompts of one length."


@dataclass
class Evaluating:
    """All models, all tasks.

    Attributes:
        general: ids of texts that tuning was not about, None where predictions are not compared.
    """

    pair: Pair
    tasks: Sequence[Task]
    settings: EvaluateSettings
    reference: Variant
    tokenizers: Mapping[str, Any]
    general: Sequence[Sequence[int]] | None = None

    @cached_property
    def models(self) -> list[str]:
        return [variant.name for variant in self.pair]

    @cached_property
    def rounds(self) -> list[tuple[int, int, Task, tuple[Item, ...]]]:
        """Place of the task, number of the round, and the items in it."""
        return [
            (place, number, task, items)
            for place, task in enumerate(self.tasks)
            for number, items in enumerate(rounds_of(task, self.settings))
        ]

    def run(self, bench: Bench) -> tuple[Outcome, Evaluation]:
        """Ask, compare, and make the tables."""
        plan = fingerprint(bench.owner, [[task.name, [item.id for item in items]] for *_, task, items in self.rounds])
        kept = KeptSteps(bench.partial, plan)
        given = [variant for variant in self.pair if variant.loaded is not None]
        found: dict[tuple[str, str], list[Scored]] = {}
        kls: dict[str, dict[str, Any]] = {}
        total = len(self.models) * sum(len(task.items) for task in self.tasks)
        advance = bench.progress.phase("evaluating", total)
        records = []
        with STOPPING.stoppable():
            for place, variant in enumerate(self._in_order()):
                answers, told = self._ask_all(place, variant, kept, advance)
                found |= answers
                kls[variant.name] = told
                described = partial(kept.once, f"{place:03d}-model", partial(self._described, variant))
                records += shared_rows(described if shared().main else list)
                if variant not in given:
                    self._let_go(variant)
        bench.notes += shared_rows(lambda: kept.notes)
        bench.notes += [record["note"] for record in records if record["note"]]
        return self._outcome(found, kls, records, bench)

    def _in_order(self) -> list[Variant]:
        """The reference first: it is needed for the others."""
        return sorted(self.pair, key=lambda variant: variant is not self.reference)

    def _ask_all(
        self, place: int, variant: Variant, kept: KeptSteps, advance: Advance
    ) -> tuple[dict[tuple[str, str], list[Scored]], dict[str, Any]]:
        found = {
            f"{which} {row['item']}": Scored(**row)
            for which, rows in shared_rows(partial(self._ask_own, place, variant, kept, advance))
            for row in rows
        }
        answers = {
            (variant.name, task.name): [found[f"{which} {item.id}"] for item in task.items]
            for which, task in enumerate(self.tasks)
        }
        return answers, self._compare_predictions(place, variant, kept)

    def _ask_own(self, place: int, variant: Variant, kept: KeptSteps, advance: Advance) -> list[tuple[int, Rows]]:
        """This process's share of the rounds: each task's place, and what was found in a round of it."""
        found = []
        own = shared().share(self.rounds)
        part = sum(len(items) for *_, items in own) / sum(len(items) for *_, items in self.rounds) if own else 1.0
        for which, number, task, items in own:
            step = f"{place:03d}-{which:03d}-{number:05d}"
            rows = kept.rows(step)
            if rows is None:
                shared().check_others()
                progress = Within(advance, len(items) / part)
                rows = ask(self._subject(variant), task, items, self.settings, progress)
                kept.keep(step, rows)
                progress.finish()
                self._stop_if_asked()
            else:
                advance(len(items) / part)
            found.append((which, rows))
        return found

    def _compare_predictions(self, place: int, variant: Variant, kept: KeptSteps) -> dict[str, Any]:
        """What is known of KL and drift between the reference and another model."""
        if self.general is None or variant is self.reference:
            return {}
        return dict(shared_rows(partial(self._compare_own, place, variant, kept)))

    def _compare_own(self, place: int, variant: Variant, kept: KeptSteps) -> list[tuple[str, Any]]:
        """This process's share of it."""
        works: dict[str, Callable[[], list[dict[str, Any]]]] = {
            **{name: partial(self._diverged, variant, texts, back) for name, (texts, back) in KLS.items()},
            DRIFT: partial(self._drifted, variant),
        }
        found = []
        for name in shared().share(list(works)):
            shared().check_others()
            (told,) = kept.once(f"{place:03d}-{name}", works[name])
            found.append((name, told[name] if name == DRIFT else told))
            self._stop_if_asked()
        return found

    def _diverged(self, variant: Variant, texts: str, back: bool) -> list[dict[str, Any]]:
        models = self.reference.model, variant.model
        return [divergence(*models, self._batches[texts], back=back, seed=self.settings.seed)]

    def _drifted(self, variant: Variant) -> list[dict[str, Any]]:
        return [{DRIFT: weight_drift(self.reference.model, variant.model)}]

    @cached_property
    def _batches(self) -> dict[str, Any]:
        """Texts on which predictions are compared: general ones, and prompts of the target tasks (of all, if none)."""
        targets = self.settings.targets or self.settings.task_names
        items = [item for task in self.tasks if task.name in targets for item in task.items]
        step = max(1, len(items) // self.settings.general_samples)
        asked = examples_of(items[::step][: self.settings.general_samples])
        prompts = encode_prompts(asked, self.tokenizers[self.reference.name], self.settings.template)
        ids = {"general": self.general or (), "tasks": [prompt.input_ids for prompt in prompts]}
        return {name: batches_of(each, self.settings.max_length, 1024) for name, each in ids.items()}

    def _subject(self, variant: Variant) -> Subject:
        return Subject(variant.name, variant.model, self.tokenizers[variant.name], self.settings.template)

    def _described(self, variant: Variant) -> list[dict[str, Any]]:
        """What `run.json` says of a model, and whether its batches are padded; the model is loaded for it."""
        asked = next((task for task in self.tasks if task.generates), None)
        note = ""
        if asked is not None:
            subject = self._subject(variant)
            prompts = encode_prompts(examples_of(asked.items[:1]), subject.tokenizer, subject.template)
            stop = stop_tokens(subject.model, subject.tokenizer, subject.template)
            shows = padding_shows(subject.model, prompts, padding_of(subject.tokenizer, stop))
            note = PADDING.format(variant.name) if shows else ""
        return [{"model": variant.as_record(), "note": note}]

    def _let_go(self, variant: Variant) -> None:
        """Free a model that was read from files and is not needed any more."""
        needed = variant is self.reference and self.general is not None
        if variant.checkpoint is not None and not needed:
            variant.loaded = None

    def _stop_if_asked(self) -> None:
        if STOPPING.due():
            STOPPING.stop()

    def _outcome(
        self, answers: Answers, kls: Mapping[str, Mapping[str, Any]], records: Sequence[Any], bench: Bench
    ) -> tuple[Outcome, Evaluation]:
        seed = self.settings.seed
        reference = self.reference.name if self.settings.compare == "reference" else None
        compared = compare(self.models, self.tasks, answers, seed, reference)
        rows = {
            "scores": score_rows(self.models, self.tasks, answers, seed),
            "comparisons": comparison_rows(compared),
            "forgetting": self._forgetting(compared, kls),
        }
        result = Evaluation.of(rows, list(self._samples(answers)), bench.run.path if bench.run else None)
        bench.notes += notes_on(rows["scores"], self.tasks, answers, self.settings.max_new_tokens)
        bench.notes += self._not_averaged()
        summary = {
            "headline": headline(rows["scores"], rows["comparisons"]),
            "reference": self.reference.name,
            "models": self.models,
            "tasks": [_told(task) for task in self.tasks],
            "targets": self.settings.targets,
            "scores": [_plain(row) for row in rows["scores"]],
            "comparisons": [_plain(row) for row in rows["comparisons"]],
            "forgetting": [_plain(row) for row in rows["forgetting"]],
            "detectable_level": ALPHA / max(len(compared), 1),
        }
        record = {"models": [each["model"] for each in records]}
        files = {**result.files(), **({"inspect": self._logs(answers)} if self.settings.inspect else {})}
        return Outcome([], summary, record, files), result

    def _logs(self, answers: Answers) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            for task in self.tasks:
                for model in self.models:
                    write_inspect_log(folder, model, task, answers[model, task.name], self.settings)

        return write

    def _forgetting(self, compared: Sequence[Compared], kls: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        if self.general is None and not self.settings.targets:
            return []
        reference, seed = self.reference.name, self.settings.seed
        found = []
        for model in (name for name in self.models if name != reference):
            ours = [each.seen_from(reference) for each in compared if {each.first, each.second} == {reference, model}]
            told = kls.get(model, {})
            estimates: dict[str, Estimate] = {name: estimate_of(told[name], seed) for name in KLS if name in told}
            found.append(forgetting_row(model, ours, self.settings.targets, estimates, told.get(DRIFT)))
        return found

    def _not_averaged(self) -> list[str]:
        left = [task.name for task in self.tasks if not averaged(task)]
        if not self.settings.targets or not left:
            return []
        return [f"Gain and loss leave out {', '.join(left)}: their scores are no shares."]

    def _samples(self, answers: Answers) -> Iterator[dict[str, Any]]:
        for task in self.tasks:
            for place, item in enumerate(task.items):
                for model in self.models:
                    scored = answers[model, task.name][place]
                    yield {
                        "model": model,
                        "task": task.name,
                        "item": item.id,
                        "cluster": item.cluster,
                        "prompt": item.example.prompt,
                        "output": scored.output,
                        "answer": scored.answer,
                        "expected": scored.expected,
                        "value": scored.value,
                        "weight": scored.weight,
                        "cut": scored.cut,
                        "failed": scored.failed,
                    }


def _told(task: Task) -> dict[str, Any]:
    clusters = task.clusters
    return {
        "name": task.name,
        "metric": task.metric,
        "kind": task.kind,
        "higher_is_better": task.higher_is_better,
        "rule": task.rule,
        "items": len(task.items),
        "units": len(task.items) if clusters is None else clusters.count,
    }


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """For JSON, which has no NaN."""
    return {name: None if isinstance(value, float) and value != value else value for name, value in row.items()}
