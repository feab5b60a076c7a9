"""The stages of a trial: tune, validate, test, analyze; of the base: test, advise.

Each leaves a file, and what has its file is not done again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from midblock.analysis import analyze
from midblock.base import MidblockError, write_json
from midblock.base.json_file import read_object
from midblock.base.options import divide
from midblock.checkpoints import LoadSettings, load_pair
from midblock.evaluation import Evaluation, evaluate
from midblock.runs.lenient import read_json
from midblock.runs.surroundings import peak_memory
from midblock.studies.recommend.advisers import advisers
from midblock.studies.study.exams import LOADING, loading_options, test_options, validation_options
from midblock.studies.study.study_file import StudyFile
from midblock.studies.study.trials import Trial, tune_options
from midblock.tuning import TuneSettings, tune

ORDER = "trial.json"
FAILED = "failed.json"
MOVED_BY = ("general", "general_samples")  # options of evaluate that want two models


@dataclass(frozen=True)
class Assignment:
    """A trial as its folder has it: whoever carries it out needs nothing else.

    Attributes:
        study: what the study is asked for.
        trial: which of its trials this is; None for the base as it is.
        folder: of the trial.
    """

    study: StudyFile
    trial: Trial | None
    folder: Path

    @classmethod
    def read(cls, folder: Path) -> Assignment:
        """Read what is assigned.

        Raises:
            MidblockError: the file is not there or broken.
        """
        found = read_object(folder / ORDER)
        trial = found["trial"]
        trial = None if trial is None else Trial(**{**trial, "point": tuple(trial["point"])})
        return cls(StudyFile.of(found["study"]), trial, folder)

    def write(self) -> None:
        write_json(
            self.folder / ORDER,
            {"study": self.study.as_config(), "trial": None if self.trial is None else asdict(self.trial)},
        )

    @property
    def model(self) -> str:
        """The model that is asked: what the trial tuned, or the base."""
        return self.study.base if self.trial is None else str(self.folder / "tune")

    @property
    def loading(self) -> dict[str, Any]:
        """How models are loaded to be asked: as they were for tuning."""
        options = self.study.tune if self.trial is None else self.trial.options
        return {key: value for key, value in options.items() if key in LOADING}

    @property
    def template(self) -> str:
        options = self.study.tune if self.trial is None else self.trial.options
        return str(options.get("template", TuneSettings().template))


def tuned(assignment: Assignment) -> dict[str, Any]:
    """Tune; a tuning that was stopped goes on."""
    trial, target = assignment.trial, assignment.folder / "tune"
    if trial is None:
        raise MidblockError("the base is not tuned")
    options = tune_options(trial)
    if trial.share < 1:
        options |= shortened(options, trial.share)
    again = (target / "run.json").exists()
    found = tune(assignment.study.base, assignment.study.data, **options, output_dir=target, resume=again)
    plan = read_object(target / "plan.json")
    return {
        "parameters": plan["trained_parameters"],
        "total_parameters": plan["total_parameters"],
        "blocks": plan["blocks"],
        "total_blocks": plan["total_blocks"],
        "layers": plan["layers"],
        "peak_memory_gb": round(found.summary["peak_memory_mb"] / 1024, 3),
        "steps": found.summary["steps"],
        "tokens": found.log[-1]["tokens"] if found.log else 0,
        "nll": found.summary["nll"],
        "artifact": str(found.path.relative_to(assignment.folder)),
    }


def validated(assignment: Assignment) -> dict[str, Any]:
    """Ask what is chosen by."""
    study = assignment.study
    loading = loading_options({**study.evaluate, **(study.validate or {})})
    return examined(assignment, validation_options(study), loading, assignment.folder / "validation")


def tested(assignment: Assignment) -> dict[str, Any]:
    """Ask what is told."""
    study = assignment.study
    return examined(assignment, test_options(study), loading_options(study.evaluate), assignment.folder / "test")


def examined(
    assignment: Assignment, options: Mapping[str, Any], loading: Mapping[str, Any], target: Path
) -> dict[str, Any]:
    """Evaluate the model of a trial; where predictions are compared, beside the base.

    Args:
        options: of evaluate.
        loading: how the model is loaded, where not as for tuning.
        target: the run folder of the evaluation.

    Returns:
        `tasks`: of each its name, metric, kind, score and items, with the value, weight and cluster of each; and how
        predictions and weights moved, where that was asked for.
    """
    beside = options.get("general") is not None and assignment.trial is not None
    alone = {key: value for key, value in options.items() if assignment.trial is not None or key not in MOVED_BY}
    found = evaluate(
        [assignment.study.base, assignment.model] if beside else assignment.model,
        loading={**assignment.loading, **loading},
        output_dir=target,
        resume=(target / "run.json").exists(),
        **{"template": assignment.template, **alone},
    )
    summary = read_object(target / "summary.json")
    name = summary["models"][-1]
    rows = found.scores[found.scores.model == name].to_dict("records")
    kinds = {task["name"]: task for task in summary["tasks"]}
    moved = [row for row in summary["forgetting"] if row["model"] == name]
    return {
        "tasks": [_told(row, kinds[row["task"]], name, found, summary["targets"]) for row in rows],
        "moved": {key: value for row in moved for key, value in row.items() if key.startswith(("kl_", "drift"))},
        "peak_memory_gb": round(peak_memory() / 2**30, 3),
    }


def _told(
    row: Mapping[str, Any], kind: Mapping[str, Any], name: str, found: Evaluation, targets: Sequence[str]
) -> dict[str, Any]:
    items = [each for each in found.samples if each["model"] == name and each["task"] == row["task"]]
    counts = {key: None if pd.isna(row[key]) else int(row[key]) for key in ("n", "no_answer", "cut")}
    return {
        "task": row["task"],
        "metric": row["metric"],
        "kind": kind["kind"],
        "higher_is_better": kind["higher_is_better"],
        "general": bool(targets) and row["task"] not in targets,
        **{key: None if math.isnan(row[key]) else float(row[key]) for key in ("value", "low", "high")},
        **counts,
        "items": [each["item"] for each in items],
        "clusters": [each["cluster"] for each in items],
        "values": [each["value"] for each in items],
        "weights": [each["weight"] for each in items],
    }


def analyzed(assignment: Assignment) -> dict[str, Any]:
    """Compare the base with what the trial tuned."""
    study, target = assignment.study, assignment.folder / "analysis"
    pair = load_pair(study.base, assignment.model, **assignment.loading)
    options = dict(study.analyze or {})
    data = options.pop("data", study.data)
    analyze(pair, data, **options, output_dir=target, resume=(target / "run.json").exists())
    summary: dict[str, Any] = read_json(target / "summary.json", {})
    return {"headline": summary.get("headline", "")}


def advised(assignment: Assignment) -> dict[str, Any]:
    """Ask `recommend`'s pilot and its rivals, before any of the sweep is looked at."""
    study = assignment.study
    asked = {"template": assignment.template, **assignment.loading, **(study.advice or {})}
    return {"advisers": [asdict(each) for each in advisers(study.base, study.data, **asked)]}


# In the order in which they are done; of each the file that says that it was.
STAGES: Mapping[str, tuple[str, Callable[[Assignment], dict[str, Any]]]] = {
    "tune": ("tuned.json", tuned),
    "validate": ("validation.json", validated),
    "evaluate": ("test.json", tested),
    "analyze": ("analyzed.json", analyzed),
    "advise": ("advice.json", advised),
}


def done(folder: Path, stage: str) -> bool:
    return (folder / STAGES[stage][0]).exists()


def carry_out(folder: Path, stages: Iterable[str]) -> None:
    """Do the stages of a trial that have no file yet.

    Raises:
        MidblockError: whatever the user can mend.
    """
    assignment = Assignment.read(folder)
    for stage in stages:
        if done(folder, stage):
            continue
        name, work = STAGES[stage]
        start = time.perf_counter()
        found = work(assignment)
        write_json(folder / name, {**found, "seconds": round(time.perf_counter() - start, 3)})


def shortened(options: Mapping[str, Any], share: float) -> dict[str, Any]:
    """The options of tune that make a training shorter."""
    settings = divide(dict(options), TuneSettings, LoadSettings)[0]
    if settings.max_steps > 0:
        return {"max_steps": max(1, round(settings.max_steps * share))}
    return {"num_train_epochs": settings.num_train_epochs * share}


def set_threads(count: int) -> None:
    """How many threads this process computes with."""
    torch.set_num_threads(count)
