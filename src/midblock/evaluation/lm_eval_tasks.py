"""`lm_eval:TASK`: any task of lm-eval's, asked and scored by lm-eval itself, in the same tables and comparisons.

`lm_eval:TASK@METRIC` or `lm_eval:TASK@METRIC/FILTER` choose the number where a task has several. Few-shot examples,
prompts and readings of answers are the task's own; a group is the mean over the items of all its tasks. lm-eval is an
optional extra, and reading its list of tasks takes some seconds.
"""

from __future__ import annotations

import copy
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from torch import nn

from midblock.base import MidblockError, Progress, generator, nearest, user_path
from midblock.base.hub import hub_answers
from midblock.data import Example
from midblock.data.examples import hash_examples
from midblock.data.hub import offline
from midblock.evaluation.answered import fewer
from midblock.evaluation.lm_eval_scores import Chosen, choose
from midblock.evaluation.task import Item, Scored, Subject, Task, TaskRequest, TaskSettings, items_of
from midblock.runs.lending import evaluating

TOKENS_A_ROW = 512  # lm-eval counts a batch in rows
FEWSHOT_SEED = 1234  # lm-eval's own
LETTERS = 200  # of another program's reason
ANY = "openai/gsm8k"  # a data set to ask the hub about: whether it answers at all


@dataclass(frozen=True, eq=False)
class Place:
    """Where an item stands: a task of lm-eval's, and the number of a document in it."""

    task: str
    document: int


def open_lm_eval(request: TaskRequest) -> Task:
    """Draw documents of a task of lm-eval's.

    Raises:
        MidblockError: lm-eval is not installed, it has no such task or cannot load it (most need the network once), or
            none of its numbers is a mean over items.
    """
    name, _, metric = request.argument.partition("@")
    if not name:
        raise MidblockError(
            f"the task {request.name!r} wants a name", hint="lm_eval:hellaswag, lm_eval:arc_easy@acc_norm"
        )
    tasks = _load(name, request.settings.include_path)
    if unsafe := [each for each, task in tasks.items() if getattr(task, "UNSAFE_CODE", False)]:
        what = f"{request.name}: lm-eval would run what models write in {unsafe[0]} with no limits"
        raise MidblockError(what, hint="the task humaneval runs programs within limits")
    chosen = {each: choose(task, each, metric) for each, task in tasks.items()}
    first = next(iter(chosen.values()))
    if other := [each for each, found in chosen.items() if (found.name, found.kind) != (first.name, first.kind)]:
        raise MidblockError(
            f"{request.name}: {other[0]} is scored by another metric", hint="ask for its tasks one by one"
        )
    items, places = _draw(tasks, request.num_samples, request.seed)
    asked = Asked(tasks, chosen, places)
    generates = all(task.OUTPUT_TYPE == "generate_until" for task in tasks.values())
    return Task(
        request.name,
        first.name,
        first.kind,
        items,
        asked.run,
        higher_is_better=first.higher_is_better,
        rule=f"lm-eval: {first.metric}/{first.filter}",
        generates=generates,
        at_once=True,
        facts=(
            ("reference", f"lm_eval:{name}"),
            ("content_hash", hash_examples(item.example for item in items)),
            ("versions", {each: _version(task) for each, task in tasks.items()}),
        ),
        notes=tuple(fewer(request, len(items))),
    )


@dataclass(frozen=True, eq=False)
class Asked:
    """Tasks of lm-eval's, and where the items drawn from them stand."""

    tasks: Mapping[str, Any]
    chosen: Mapping[str, Chosen]
    places: Mapping[str, Place]

    def run(
        self, subject: Subject, items: Sequence[Item], settings: TaskSettings, progress: Progress
    ) -> Iterator[Scored]:
        """Let lm-eval ask a model the items."""
        advance = progress.phase("asking lm-eval's questions", len(items))
        by_place = {(self.places[item.id].task, self.places[item.id].document): item.id for item in items}
        wanted: dict[str, list[int]] = {}
        for task, document in sorted(by_place):  # lm-eval takes documents in their own order
            wanted.setdefault(task, []).append(document)
        samples = _evaluate(subject, {task: self.tasks[task] for task in wanted}, wanted, settings)
        for task, rows in samples.items():
            chosen, writes = self.chosen[task], self.tasks[task].OUTPUT_TYPE == "generate_until"
            for sample in rows:
                if sample["filter"] == chosen.filter:
                    yield chosen.scored(by_place[task, sample["doc_id"]], sample, writes)
        advance(len(items))


def _evaluate(
    subject: Subject, tasks: Mapping[str, Any], wanted: Mapping[str, list[int]], settings: TaskSettings
) -> Mapping[str, Any]:
    """Samples as lm-eval keeps them, by task."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    if subject.template not in ("raw", "chat"):
        what = f"lm-eval takes no chat template from the file {subject.template}"
        raise MidblockError(what, hint="--template raw, or chat for the tokenizer's own")
    rows = max(1, settings.batch_tokens // TOKENS_A_ROW)
    tokenizer = copy.deepcopy(subject.tokenizer)  # lm-eval gives it a padding token
    with _quiet(), evaluating(subject.model), _weights_as_they_are(subject.model), _told(subject.name):
        model = HFLM(pretrained=subject.model, tokenizer=tokenizer, batch_size=rows)
        found = evaluate(
            lm=model,
            task_dict={"tasks": dict(tasks), "groups": {}, "group_map": {}},
            samples=dict(wanted),
            bootstrap_iters=0,
            apply_chat_template=subject.template == "chat",
        )
    samples: Mapping[str, Any] = found["samples"]
    return samples


def _load(name: str, folder: str | None) -> dict[str, Any]:
    """The tasks behind a name, one of their own or a group's."""
    try:
        import datasets
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        what = "tasks of lm-eval's need the package `lm_eval`"
        raise MidblockError(what, hint='pip install "midblock[lm-eval]"') from error
    if folder is not None and not user_path(folder).is_dir():
        raise MidblockError(f"there is no folder {folder} with tasks for lm-eval", hint="--include-path FOLDER")
    own = None if folder is None else str(user_path(folder))
    with _quiet(), _told(f"lm_eval:{name}"):
        manager = TaskManager(include_path=own, include_defaults=False) if own else None
        if manager is None or name not in manager.all_tasks:
            manager = TaskManager(include_path=own)
        known = manager.all_tasks
        if name in known:
            loaded = _loaded(manager, name, datasets)
    if name not in known:
        close = nearest(name, known)
        hint = (
            f"did you mean lm_eval:{close}?" if close else "`lm-eval ls tasks` lists them; --include-path adds a folder"
        )
        raise MidblockError(f"lm-eval has no task {name!r}", hint=hint)
    for task in loaded.values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return loaded


def _loaded(manager: Any, name: str, datasets: Any) -> dict[str, Any]:
    """Load from files and the cache, else from the hub where it can be reached: its clients try for half a minute."""
    try:
        with offline(datasets):
            return dict(manager.load([name])["tasks"])
    except Exception:
        if not hub_answers(lambda hub, seconds: hub.dataset_info(ANY, timeout=seconds)):
            raise
    return dict(manager.load([name])["tasks"])


def _version(task: Any) -> str:
    """What lm-eval says of how often a task was changed."""
    metadata = getattr(task.config, "metadata", None)
    return str((metadata or {}).get("version", task.VERSION))


def _draw(tasks: Mapping[str, Any], num_samples: int | None, seed: int) -> tuple[tuple[Item, ...], dict[str, Place]]:
    """Items, in the order of the tasks and their documents."""
    places = [Place(name, number) for name, task in tasks.items() for number in range(len(task.eval_docs))]
    if num_samples is not None and num_samples < len(places):
        order = generator(seed, "data", "sample").permutation(len(places))[:num_samples]
        places = [places[int(index)] for index in sorted(order)]
    items: list[Item] = []
    for name, task in tasks.items():
        documents = [task.eval_docs[place.document] for place in places if place.task == name]
        items += items_of(f"lm_eval:{name}", [_example(task, document) for document in documents])
    return tuple(items), dict(zip((item.id for item in items), places, strict=True))


def _example(task: Any, document: Mapping[str, Any]) -> Example:
    shown = json.dumps(document, sort_keys=True, default=str)
    return Example(str(task.doc_to_text(document)), str(task.doc_to_target(document)), extra={"document": shown})


@contextmanager
def _weights_as_they_are(model: nn.Module) -> Iterator[None]:
    """Keep lm-eval from tying weights anew, which would overwrite a head that is tied by the config's word alone."""
    vars(model)["tie_weights"] = lambda *args, **options: None
    try:
        yield
    finally:
        del vars(model)["tie_weights"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep bars and notes of lm-eval from where this program writes its own."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Raise MidblockError for whatever lm-eval, and what it loads, says of a task that it cannot do."""
    try:
        yield
    except (MidblockError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:LETTERS] or type(error).__name__
        hint = "most tasks load their data from the hub once; --include-path takes tasks of your own"
        raise MidblockError(f"{name}: lm-eval fails: {reason}", hint=hint) from error
