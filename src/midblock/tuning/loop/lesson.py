"""A course carried out: read, prepare, train, save the result, see how far weights moved.

`tune` and `flow` do all of it alike. What differs is an `Aim`: who looks at gradients, where the result goes, and what
is made of it all. Described in docs/tuning/README.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from midblock.base import LayerRow, MidblockError, Progress, write_json
from midblock.base.names import name_note, name_of
from midblock.data import ExampleSet
from midblock.runs.folder import RunFolder
from midblock.runs.lock import check_not_held
from midblock.runs.processes import barrier, main_process, world_size
from midblock.runs.request import Draft, Request
from midblock.runs.run import Bench, Done, Outcome, Ready, carry_out
from midblock.runs.stopping import STOPPING
from midblock.runs.where import Where
from midblock.tuning.loop.aim import Aim, Learned
from midblock.tuning.loop.arguments import half, training_arguments, weight_dtype
from midblock.tuning.loop.course import BASE_WEIGHTS, Course, weights_of
from midblock.tuning.loop.examples import TrainingExamples, check_fit, check_loss, load_examples, runs_here
from midblock.tuning.loop.held_weights import HeldWeights
from midblock.tuning.loop.memory import estimate_memory
from midblock.tuning.loop.outputs import moved_rows, save_model
from midblock.tuning.loop.rates import DepthRates
from midblock.tuning.loop.resume import UNSEALED
from midblock.tuning.loop.schedule import schedule_of
from midblock.tuning.loop.sharding import release, shard
from midblock.tuning.loop.training import Trained, Training, open_store
from midblock.tuning.place.prepared import Prepared, prepare
from midblock.tuning.prefix.store import PrefixStore

PLAN = "plan.json"


def train(
    course: Course,
    aim: Aim,
    where: Where,
    *,
    stop_due: Callable[[], bool] = STOPPING.due,
    stop: Callable[[], NoReturn] = STOPPING.stop,
) -> Done:
    """Carry out a course, or read back the finished run of it that is there.

    Args:
        stop_due, stop: as of `Training`.

    Raises:
        MidblockError: anything the user can mend; checkpoints written until then stay for `resume`.
    """
    folder, draft = where.needed(course.verb), course.draft()
    if main_process():
        check_not_held(folder)
    RunFolder.check(folder, draft, where)  # before data and weights are read
    tokenizer = course.checkpoint.tokenizer()
    examples = load_examples(course.data, tokenizer, course.settings)
    notes = [*name_note(folder), *examples.notes, *check_fit(examples, course.checkpoint.config)]
    request = draft.decided(course.inputs(examples))
    lesson = Lesson(
        course=course,
        aim=aim,
        folder=folder,
        tokenizer=tokenizer,
        examples=examples,
        request=request,
        notes=notes,
        stop_due=stop_due,
        stop=stop,
    )
    # a finished run is read back only while data and weights are those it was made of, so they are known before
    return carry_out(Draft(request), lesson.prepare, where, together=True)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A course whose examples are read.

    Attributes:
        folder: the run folder.
        request: complete.
        notes: what a reader must know so far.
        stop_due, stop: as of `Training`.
    """

    course: Course
    aim: Aim
    folder: Path
    tokenizer: Any
    examples: TrainingExamples
    request: Request
    notes: list[str] = field(default_factory=list)
    stop_due: Callable[[], bool] = STOPPING.due
    stop: Callable[[], NoReturn] = STOPPING.stop

    def prepare(self, progress: Progress) -> Ready:
        """Load the base, make the planned parameters trainable, factorise what is held on to, and share it out."""
        course, settings = self.course, self.course.settings
        arguments = training_arguments(settings, course.loop, course.loading, self.folder / "checkpoints")
        start = time.perf_counter()
        loading = replace(course.loading, dtype=weight_dtype(settings, course.loop, course.loading))
        prepared = prepare(course.checkpoint, course.plan, settings, loading, course.others)
        if runs_here(prepared.causal):
            check_loss(course.checkpoint.name, prepared.causal, self.examples)
        hashes = self.request.inputs
        weight_hash = hashes[BASE_WEIGHTS]
        held = HeldWeights.of(prepared, settings, weight_hash, arguments.device, progress)
        if course.loop.shard:
            shard(prepared.model, prepared.causal, prepared.anatomy, arguments.device, half(course.loading))
        reference = course.checkpoint.reference.text
        base = {"name": "base", "role": "base", "reference": reference, "weight_hash": weight_hash}
        others = [
            {"name": name, "role": name, "reference": other.reference.text, "weight_hash": hashes[weights_of(name)]}
            for name, other in course.others.items()
        ]
        return Ready(
            request=self.request,
            work=partial(self._work, prepared, held, arguments, start),
            facts={"seed": settings.seed, "data": dict(self.examples.facts), "models": [base, *others]},
            notes=[*self.notes, *prepared.notes, *held.notes, *_given_in_memory(course.data)],
        )

    def _work(self, prepared: Prepared, held: HeldWeights, arguments: Any, start: float, bench: Bench) -> Outcome:
        bench.record["notes"] = bench.notes  # already, for whoever looks at a run on its way
        with bench.phase("prepare", since=start):
            store = self._open_store(prepared, bench)
            planned = self._plan_record(prepared, held, store, bench.notes)
        if main_process():
            write_json(bench.folder / PLAN, planned)
            self.aim.announce(planned)
        training = Training(
            folder=bench.folder,
            prepared=prepared,
            examples=self.examples,
            settings=self.course.settings,
            loop=self.course.loop,
            loading=self.course.loading,
            held=held,
            store=store,
            arguments=arguments,
            tokenizer=self.tokenizer,
            progress=bench.progress,
            on_gradients=self.aim.on_gradients,
            stop_due=self.stop_due,
            stop=self.stop,
        )
        with bench.phase("train"):
            done = training.run()
        bench.notes += [*_unreached(done.unreached), *([UNSEALED] if done.unsealed else [])]
        planned["frozen_prefix"] |= {"computed": done.prefix.computed, "served": done.prefix.served}
        if self.course.loop.shard:
            release(prepared.causal)
        self._save(prepared, planned, bench)
        return self._outcome(prepared, planned, done, bench) if main_process() else Outcome(rows=[], summary={})

    def _rates(self) -> dict[str, Any]:
        rates = DepthRates.of(self.course.settings.lr_by_depth, self.course.plan.total)
        return {} if rates is None else {"learning_rate_factors": rates.as_record()}

    def _save(self, prepared: Prepared, planned: Mapping[str, Any], bench: Bench) -> None:
        main = main_process()
        card = self.aim.card(bench.record, planned) if main else ""
        with bench.phase("save"):
            save_model(prepared, self.tokenizer, self.course.checkpoint, self.aim.target, card, main)
        barrier()

    def _outcome(self, prepared: Prepared, planned: Mapping[str, Any], done: Trained, bench: Bench) -> Outcome:
        blocks = len(prepared.anatomy)
        with bench.phase("compare"):
            moved = self._moved(blocks, bench)
        learned = Learned(
            lines=done.log.read(),
            planned=planned,
            moved=moved,
            blocks=blocks,
            compared=done.compared,
            notes=bench.notes,
        )
        rows, summary = self.aim.results(learned)
        return Outcome(
            rows=rows,
            summary=summary,
            files={PLAN: lambda path: write_json(path, planned)},
            phase="save",
        )

    def _moved(self, blocks: int, bench: Bench) -> list[LayerRow]:
        base, target, name = self.course.checkpoint, self.aim.target, name_of(self.folder)
        try:
            return moved_rows(base, target, name, blocks, bench.notes, bench.progress)
        except MidblockError as error:  # adapters whose change is more than a product of two factors
            bench.notes.append(f"How far weights moved is left out: {error}.")
            return []

    def _open_store(self, prepared: Prepared, bench: Bench) -> PrefixStore | None:
        return open_store(
            prepared,
            self.examples,
            self.course.settings,
            self.course.loop,
            folder=bench.folder / "partial" / "prefix",
            key=repr(sorted(self.request.inputs.items())),
            notes=bench.notes,
        )

    def _plan_record(
        self, prepared: Prepared, held: HeldWeights, store: PrefixStore | None, notes: Sequence[str]
    ) -> dict[str, Any]:
        settings, loop, cache = self.course.settings, self.course.loop, store.bytes if store else 0
        memory = estimate_memory(
            prepared,
            settings,
            self.examples.facts["longest"],
            shards=world_size() if loop.shard else 1,
            anchor_bytes=held.bytes,
            cache_bytes=cache,
        )
        return {
            **prepared.as_record(settings),
            "memory": memory,
            "anchor": held.as_record(),
            **self._rates(),
            "schedule": schedule_of(settings, loop, self.examples),
            "frozen_prefix": {"blocks": prepared.first, "cached": store is not None, "bytes": cache},
            "notes": list(notes),
        }


def _unreached(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [
        f"No gradient reaches {names[0]} ({len(names)} such in all), as the architecture computes: left as they are."
    ]


def _given_in_memory(data: str | ExampleSet) -> list[str]:
    if isinstance(data, str):
        return []
    return [f"The examples were given in memory ({data.reference}): config.yaml names no data."]
