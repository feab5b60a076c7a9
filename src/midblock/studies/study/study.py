"""`study`: a grid of tunings, each validated and tested alike, compared arm by arm.

The study plans; its trials run in processes of their own, where a backend puts them, and leave files. What is done next
follows from those files alone, so that a study that was killed goes on as if it had not been. Described in
docs/study.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midblock.base import MidblockError, Progress, divide, unknown, write_json
from midblock.base.json_file import read_object
from midblock.base.plural import counted
from midblock.base.seal import fingerprint
from midblock.checkpoints import Checkpoint, LoadSettings, open_checkpoint, quiet_transformers
from midblock.data import local_places
from midblock.runs.request import Draft, Request, check_takes
from midblock.runs.run import Bench, Outcome, Ready, carry_out
from midblock.runs.where import Where
from midblock.studies.recommend.settings import RecommendSettings
from midblock.studies.study.again import local_inputs
from midblock.studies.study.backends import BACKENDS, CHECKS
from midblock.studies.study.cost import Cost, cost_of
from midblock.studies.study.crew import Crew, Work
from midblock.studies.study.exams import Exam, check_apart, open_exam, test_options, validation_options
from midblock.studies.study.peft_rows import write_peft_rows
from midblock.studies.study.results import TRIALS, read_result, read_results
from midblock.studies.study.rounds import SHARES, Round, next_round, shorter
from midblock.studies.study.settings import StudySettings
from midblock.studies.study.stages import FAILED, Assignment
from midblock.studies.study.study_file import StudyFile
from midblock.studies.study.summary import summarize
from midblock.studies.study.table import frame_of, keys_of, read_table, rows_of, write_table
from midblock.studies.study.trials import BASE, Trial, arms_of, check_trials, reference_arm, trials_of

if TYPE_CHECKING:
    import pandas as pd

ITEMS = "the items of validation and test"
LOGS = "jobs"  # what engines write


class TrialsFailedError(MidblockError):
    """Everything was done but trials that failed; the folder holds the rest."""

    def __init__(self, what: str, folder: Path) -> None:
        self.folder = folder
        super().__init__(what, hint=f"{folder / TRIALS}/NAME/trial.log tells more; --resume tries them again")


@dataclass(frozen=True)
class Study:
    """A finished study.

    Attributes:
        folder: the run folder; `trials/NAME` in it holds each trial.
        trials: a row for each trial, task and metric.
        summary: what `summary.json` holds: of each task the arms, how likely each is the best, and comparisons.
    """

    folder: Path
    trials: pd.DataFrame
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """A study that was checked, before it starts.

    Attributes:
        study: what its file says.
        trials: all of them, at their full length.
        reference: the arm that others are compared with.
        checkpoint: the base.
        exams: what is asked for validation and as a test.
    """

    study: StudyFile
    trials: tuple[Trial, ...]
    reference: str
    checkpoint: Checkpoint
    exams: tuple[Exam | None, Exam]

    @classmethod
    def of(cls, study: StudyFile) -> Planned:
        """Check all that can be known before anything runs.

        Raises:
            MidblockError: what the user can mend.
        """
        trials = trials_of(study)
        reference = reference_arm(study, trials)
        check_trials(study, trials)
        divide(dict(study.advice or {}), LoadSettings, RecommendSettings)
        test = open_exam(test_options(study), "evaluate")
        asked = None if study.validate is None else validation_options(study)
        validation = None if asked is None else open_exam(asked, "validate")
        check_apart(study, trials, validation, test)
        base = open_checkpoint(study.base)
        check_takes("study", base)
        return cls(study, trials, reference, base, (validation, test))

    @property
    def scouts(self) -> list[Trial]:
        """Trials at a share of their steps."""
        halved = self.study.halves == "steps"
        return [shorter(trial, share) for share in SHARES for trial in self.trials] if halved else []

    def cost(self, jobs: int) -> Cost:
        return cost_of(self.study, self.trials, self.reference, self.checkpoint, self.exams, jobs)

    def described(self) -> list[str]:
        """What is about to be done, in lines."""
        study, arms = self.study, arms_of(self.trials)
        validation, test = self.exams
        lines = [
            f"{counted(len(self.trials), 'trial')}: {counted(len(arms), 'arm')} "
            f"({', '.join(arms[:12])}{', …' * (len(arms) > 12)})"
        ]
        for key in (*study.select, *(["seed"] if "seed" in study.grid else [])):
            lines.append(f"{key}: {', '.join(map(str, study.grid[key]))}{' (selected)' * (key in study.select)}")
        for name, exam in (("Validation", validation), ("Test", test)):
            if exam is not None:
                lines.append(f"{name}: {', '.join(f'{task.name} ({len(task.items)})' for task in exam.tasks)}")
        lines.append(f"Compared with: {self.reference}")
        if study.halves != "none":
            lines.append(f"Successive halving by {study.halves}: the better half goes on")
        return lines


Announce = Callable[[Planned, Cost], None]


def study(
    file: str | Path | Mapping[str, Any] | StudyFile, *, announce: Announce | None = None, **options: Any
) -> Study | None:
    """Tune, validate, test and compare a grid of plans.

    Args:
        file: the study's YAML file, or what it holds.
        announce: given the checked plan and its cost before anything runs.
        **options: fields of `StudySettings` and of `Where`; `output_dir` has to be given.

    Returns:
        The result; None after a dry run.

    Raises:
        TrialsFailedError: trials failed; all others are done and told of.
        MidblockError: anything else that the user can mend; what was done stays for `resume`.

    Example:
        >>> from midblock import study
        >>> asked = {"tasks": ["exact_match:test.jsonl"], "num_samples": 6, "max_new_tokens": 4}
        >>> plan = {"base": "start", "data": "sums.jsonl", "tune": {"max_steps": 2}, "evaluate": asked,
        ...         "grid": {"layers": ["all", "010"]}}
        >>> found = study(plan, output_dir="study", backend="here")
        >>> found.trials.trial.tolist()
        ['base', 'all', '010']
    """
    where, settings = divide(options, Where, StudySettings)
    if settings.backend not in BACKENDS:
        raise unknown("backend", settings.backend, BACKENDS)
    if settings.backend in CHECKS and not settings.dry_run:
        CHECKS[settings.backend](settings)
    asked = _read(file)
    asked = asked.with_halving() if settings.halving else asked
    asked = asked.with_advice() if settings.score_recommendation else asked
    with quiet_transformers():
        draft = _draft(asked)
        if settings.dry_run:
            planned = Planned.of(asked)
            if announce is not None:
                announce(planned, planned.cost(settings.jobs))
            return None
        prepare = partial(_prepare, asked, draft, settings, announce)
        carry_out(draft, prepare, where)
    folder = where.needed("study")
    return Study(folder, read_table(folder), read_object(folder / "summary.json"))


def _read(file: str | Path | StudyFile | Mapping[str, Any]) -> StudyFile:
    if isinstance(file, StudyFile):
        return file
    return StudyFile.of(file) if isinstance(file, Mapping) else StudyFile.read(file)


def _draft(study: StudyFile) -> Draft:
    """The request, as far as it is known before anything is read."""
    sources = (*open_checkpoint(study.base).places, *local_places(study.data))
    return Draft(Request("study", study.as_config(), local_inputs(study), sources))


def _prepare(
    study: StudyFile, draft: Draft, settings: StudySettings, announce: Announce | None, progress: Progress
) -> Ready:
    planned = Planned.of(study)
    if announce is not None:
        announce(planned, planned.cost(settings.jobs))
    facts = {
        "seed": study.seed,
        "models": [{"name": BASE, "role": BASE, "reference": study.base}],
        "data": {"reference": study.data},
    }
    notes = [note for exam in planned.exams if exam is not None for task in exam.tasks for note in task.notes]
    work = partial(_work, planned, settings)
    asked = fingerprint([[item.id for item in task.items] for exam in planned.exams if exam for task in exam.tasks])
    return Ready(draft.decided({ITEMS: asked}), work, facts, list(dict.fromkeys(notes)))


def _work(planned: Planned, settings: StudySettings, bench: Bench) -> Outcome:
    """Go from round to round until nothing is due, then tell."""
    folder = bench.folder
    crew = Crew(settings, folder / LOGS)
    for name, result in read_results(folder).items():
        if result.failed:  # it is tried once more
            (folder / TRIALS / name / FAILED).unlink()
    with bench.phase("trials"):
        last = _go_on(planned, crew, folder, bench.progress)
    results = read_results(folder)
    summary = summarize(planned.study, planned.trials, results, last.chosen, last.dropped, planned.reference)
    keys = keys_of(planned.trials)
    frame = frame_of(rows_of(planned.trials, planned.scouts, results, last.chosen, last.dropped, keys), keys)
    write_table(frame, folder)
    if settings.peft_comparison:
        write_peft_rows(planned.study, planned.trials, results, folder)
    if failed := summary["failed"]:
        _tell_of_failures(bench, summary, failed)
    return Outcome([], summary)


def _tell_of_failures(bench: Bench, summary: Mapping[str, Any], failed: Mapping[str, str]) -> None:
    """Leave what was found, unfinished, so that `--resume` tries the failed trials again."""
    write_json(bench.folder / "summary.json", summary)
    bench.record["notes"] = [*bench.notes, *(f"{name} failed: {why}" for name, why in failed.items())]
    bench.save()
    name, why = next(iter(failed.items()))
    what = f"{len(failed)} of {summary['trials']} trials failed, {name} first: {why}"
    raise TrialsFailedError(what, bench.folder)


def _go_on(planned: Planned, crew: Crew, folder: Path, progress: Progress) -> Round:
    """Carry out rounds until one has nothing to do."""
    while True:
        seen = {name: result.seen for name, result in read_results(folder).items()}
        now = next_round(planned.study, planned.trials, planned.reference, seen)
        if not now.due:
            return now
        works = [_assigned(planned.study, trial, stages, folder) for trial, stages in now.due]
        advance = progress.phase(_title(now.due), len(works))
        BACKENDS[crew.settings.backend](works, crew, partial(_ended, advance))


def _assigned(study: StudyFile, trial: Trial | None, stages: Sequence[str], folder: Path) -> Work:
    place = folder / TRIALS / (BASE if trial is None else trial.name)
    place.mkdir(parents=True, exist_ok=True)
    Assignment(study, trial, place).write()
    return Work(place, tuple(stages))


def _title(due: Sequence[tuple[Trial | None, tuple[str, ...]]]) -> str:
    """What a round does, in words."""
    tuned = any("tune" in stages for _, stages in due)
    return f"{'tuning' if tuned else 'testing'} {len(due)} trial{'s' * (len(due) != 1)}"


def _ended(advance: Callable[[float], None], work: Work, problem: str) -> None:
    """A trial's process is behind us; one that went away without a word has failed too."""
    result = read_result(work.folder)
    if not result.failed and not set(work.stages) <= set(result.files):
        write_json(work.folder / FAILED, {"error": problem or "its process ended without a word"})
    advance(1)
