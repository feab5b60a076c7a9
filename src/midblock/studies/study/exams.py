"""Exams: what models are asked, to choose by (validation) and to be told (test), and that neither was trained on.

Validation items that are not told apart by a split or a seed of their own are the next ones behind the test's, so that
the two never share one. Where prompts of training, validation and test overlap, the study is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any

from midblock.base import MidblockError, from_options
from midblock.base.json_file import shown
from midblock.checkpoints import LoadSettings
from midblock.evaluation.evaluate.settings import EvaluateSettings
from midblock.evaluation.task import Task
from midblock.evaluation.tasks import open_task
from midblock.studies.study.study_file import Options, StudyFile
from midblock.studies.study.trials import Trial, tune_options
from midblock.tuning import TuneSettings
from midblock.tuning.loop.examples import draw_examples

NOT_VALIDATED = ("general", "general_samples", "compare")  # what forgetting costs is told of the test alone
LOADING = tuple(each.name for each in fields(LoadSettings))
ELSEWHERE = "leave seed and split of `validate` out: the items behind the test's are taken then"


@dataclass(frozen=True)
class Exam:
    """What models are asked at one stage of a study.

    Attributes:
        options: of evaluate.
        tasks: with their items.
    """

    options: Options
    tasks: tuple[Task, ...]

    @property
    def targets(self) -> tuple[Task, ...]:
        """Tasks that tuning aims at; the first one decides."""
        named = EvaluateSettings(**self.options).targets
        return tuple(task for task in self.tasks if task.name in named or not named)


def test_options(study: StudyFile) -> dict[str, Any]:
    """Options of evaluate by which every tuned model is tested."""
    return _options(study.evaluate)


def validation_options(study: StudyFile) -> dict[str, Any]:
    """Options of evaluate for what is chosen by: the test's where the study says nothing else, on other items.

    Raises:
        MidblockError: no items can be left behind the test's.
    """
    test, own = study.evaluate, study.validate or {}
    spec = {**{key: value for key, value in test.items() if key not in NOT_VALIDATED}, **own}
    if "skip" not in own and all(spec.get(key) == test.get(key) for key in ("seed", "split")):
        tested = _options(test)["num_samples"]
        if tested is None or spec.get("num_samples", tested) is None:
            what = "validate and evaluate draw alike, and one of them takes all there is"
            raise MidblockError(what, hint="give both a num_samples, or `validate` a split of its own")
        spec["skip"] = test.get("skip", 0) + tested
    return _options(spec)


def open_exam(options: Options, where: str) -> Exam:
    """Draw the items.

    Args:
        where: of the study's file.

    Raises:
        MidblockError: no task, an unknown one or an unknown option, or data that cannot be read.
    """
    try:
        settings = from_options(EvaluateSettings, options)
        tasks = [open_task(name, settings.num_samples, settings.seed, settings.split, settings, settings.skip)
                 for name in settings.task_names]  # fmt: skip
    except MidblockError as error:
        raise MidblockError(f"{where}: {error.what}", hint=error.hint) from error
    except (TypeError, ValueError) as error:
        raise MidblockError(f"{where}: {error}", hint="see midblock evaluate --help") from error
    return Exam(options, tuple(tasks))


def loading_options(spec: Options) -> dict[str, Any]:
    """How models are loaded to be asked, where that is another way than for tuning: `dtype`, …"""
    return {key: value for key, value in spec.items() if key in LOADING}


def _options(spec: Options) -> dict[str, Any]:
    found = {"num_samples": EvaluateSettings.num_samples, **spec}
    found = {key: value for key, value in found.items() if key not in LOADING}
    for key in ("tasks", "target"):
        if isinstance(found.get(key), str):
            found[key] = [found[key]]
        if isinstance(found.get(key), list):
            found[key] = tuple(map(str, found[key]))
    return found


def check_apart(study: StudyFile, trials: Sequence[Trial], validation: Exam | None, test: Exam) -> None:
    """Raise MidblockError where prompts of training, validation and test overlap (general tasks aside)."""
    asked = {"test": _prompts(test.targets)}
    if validation is not None:
        asked["validation"] = _prompts(validation.targets)
        _refuse(asked["validation"], asked["test"], "validation", "test", ELSEWHERE)
    for examples in _trained_on(study, trials):
        trained = {_hash(prompt): prompt for prompt in examples}
        for name, prompts in asked.items():
            _refuse(prompts, trained, name, "training", "another split, or other data")


def _trained_on(study: StudyFile, trials: Sequence[Trial]) -> Iterable[list[str]]:
    """The prompts of each distinct training set."""
    known: set[str] = set()
    for trial in trials:
        options = tune_options(trial)
        key = repr([options.get(name) for name in ("seed", "num_samples", "split")])
        if key not in known:
            known.add(key)
            given = {name: options[name] for name in ("seed", "num_samples", "split") if name in options}
            yield [example.prompt for example in draw_examples(study.data, TuneSettings(**given))]


def _prompts(tasks: Iterable[Task]) -> dict[str, str]:
    return {_hash(item.example.prompt): item.example.prompt for task in tasks for item in task.items}


def _hash(prompt: str) -> str:
    return sha256(" ".join(prompt.split()).encode("utf-8", "surrogatepass")).hexdigest()


def _refuse(one: Mapping[str, str], other: Mapping[str, str], name: str, named: str, hint: str) -> None:
    common = [key for key in one if key in other]
    if common:
        what = f"{len(common)} of {len(one)} {name} prompts are {named} prompts too, like {shown(one[common[0]])}"
        raise MidblockError(what, hint=hint)
