"""`tune`: a base, data and a plan in; an adapter or checkpoint, its card, its log and its table out.

Cost: that of the training (`course`, `lesson`), and a checksum of every frozen tensor before and after. Described in
docs/tuning/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from midblock.base import LayerRow, divide
from midblock.base.names import name_of
from midblock.checkpoints import LoadSettings, quiet_transformers
from midblock.data import ExampleSet
from midblock.runs.processes import main_process
from midblock.runs.request import Draft
from midblock.runs.where import Where
from midblock.tuning.loop.aim import Aim, Learned
from midblock.tuning.loop.card import model_card
from midblock.tuning.loop.course import Course
from midblock.tuning.loop.lesson import train
from midblock.tuning.loop.log_file import LogFile
from midblock.tuning.loop.outputs import Artifact, gradient_rows
from midblock.tuning.loop.summary import check_uploadable, read_artifact, summarize_tuning, upload
from midblock.tuning.loop.tune_settings import TuneSettings
from midblock.tuning.place.methods import method_of

Announce = Callable[[Mapping[str, Any]], None]


def tune(
    base: str,
    data: str | ExampleSet,
    layers: str = "all",
    *,
    announce: Announce | None = None,
    **options: Any,
) -> Artifact:
    """Fine-tune chosen blocks of a model on completions.

    Args:
        base: a model reference.
        data: a dataset reference, or examples already loaded.
        layers: the blocks, in any notation of `LayerPlan`, or `auto:RUN` from an analysis.
        announce: given the plan (as in `plan.json`) before training starts.
        **options: fields of `TuneSettings`, `LoadSettings` and `Where`; `output_dir` must be among them.

    Returns:
        The result: where it lies, its log and its table. On all processes but the main one log and table are empty.

    Raises:
        MidblockError: anything the user can mend; checkpoints written until then stay for `resume`.

    Example:
        >>> from midblock import tune
        >>> artifact = tune("start", "sums.jsonl", "010", max_steps=2, output_dir="middle")
        >>> artifact.path.name, len(artifact.losses)
        ('adapter', 2)
    """
    where, loading, settings = divide({**options, "layers": layers}, Where, LoadSettings, TuneSettings)
    folder = where.needed("tune")
    target = folder / method_of(settings).folder
    check_uploadable(settings)
    with quiet_transformers():
        course = Course.of("tune", base, data, settings=settings, loop=settings, loading=loading)
        aim = Aim(
            target=target,
            results=partial(_results, name=name_of(folder), artifact=target.name),
            card=partial(model_card, settings, course.checkpoint, command=where.command),
            announce=announce or (lambda planned: None),
        )
        done = train(course, aim, where)
        if done.outcome is None:
            artifact = read_artifact(folder, target, done.table)
        else:
            lines = LogFile(folder / "log.jsonl").read() if main_process() else ()
            artifact = Artifact(folder=folder, path=target, table=done.table, log=lines, summary=done.outcome.summary)
        if settings.push_to_hub and main_process():
            upload(target, settings)
    return artifact


def tune_draft(base: str, data: str | ExampleSet, layers: str = "all", **options: Any) -> Draft:
    """The request that `tune` would carry out with the same arguments, before data and weights are read.

    Raises:
        MidblockError: what `tune` would refuse before it reads them.
    """
    _, loading, settings = divide({**options, "layers": layers}, Where, LoadSettings, TuneSettings)
    with quiet_transformers():
        return Course.of("tune", base, data, settings=settings, loop=settings, loading=loading).draft()


def _results(learned: Learned, *, name: str, artifact: str) -> tuple[list[LayerRow], dict[str, Any]]:
    rows = [*gradient_rows(learned.lines, name, learned.blocks), *learned.moved]
    return rows, summarize_tuning(learned.lines, learned.planned, learned.compared, artifact)
