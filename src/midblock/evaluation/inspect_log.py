"""An Inspect log of what a model made of a task, for `inspect view` and `inspect_ai.log.read_eval_log`.

Written in Inspect's own JSON format (version 2), so that inspect-ai need not be installed here. A file holds one model
and one task: each item with its question, what was written, what was read from that, the right answer and the score.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from midblock.base.files import replace_atomically
from midblock.base.seal import fingerprint
from midblock.evaluation.task import Item, Scored, Task, TaskSettings

FORMAT = 2
LETTERS = 22  # of an id, as Inspect's own have
UNSAFE = re.compile(r"[^\w.-]+")


def write_inspect_log(
    folder: Path,
    subject: str,
    task: Task,
    rows: Iterable[Scored],
    settings: TaskSettings,
    created: datetime | None = None,
) -> Path:
    """Write a log; one of the same model and task in that folder is replaced.

    Args:
        folder: where logs lie; `inspect view --log-dir` shows all of them.
        subject: the model's name.
        rows: what it made of the task's items, in any order.
        created: when the run began; now when left out.

    Returns:
        The file, whose name begins with that time, as Inspect wants it.

    Raises:
        MidblockError: the disk is full or the place cannot be written.
    """
    created = (created or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0)
    own = fingerprint(subject, task.name)[:LETTERS]
    name = f"{created.strftime('%Y-%m-%dT%H-%M-%S+00-00')}_{UNSAFE.sub('-', task.name)[:60]}_{own}.json"
    log = inspect_log(subject, task, list(rows), settings, created.isoformat())
    with replace_atomically(folder / name) as temporary:
        temporary.write_text(json.dumps(log, indent=1, allow_nan=False), encoding="utf-8")
    for earlier in folder.glob(f"*_{own}.json"):
        if earlier.name != name:
            earlier.unlink()
    return folder / name


def inspect_log(
    subject: str, task: Task, rows: Sequence[Scored], settings: TaskSettings, created: str
) -> dict[str, Any]:
    """The log as plain values.

    Args:
        created: when the run began, as ISO 8601 writes it, with its zone.
    """
    items = {item.id: item for item in task.items}
    config = {"max_tokens": settings.max_new_tokens, "temperature": 0.0} if task.generates else {}
    facts = {name: value for name, value in task.facts if value}
    whole = sum(row.weight for row in rows)
    value = sum(row.value * row.weight for row in rows) / whole if whole else 0.0
    metric = {"name": task.metric, "value": value, "params": {}}
    score = {"name": task.metric, "scorer": task.metric, "params": {}, "metrics": {task.metric: metric}}
    return {
        "version": FORMAT,
        "status": "success" if len(rows) == len(items) else "cancelled",
        "eval": {
            "eval_id": fingerprint(subject, task.name, created)[:LETTERS],
            "run_id": fingerprint(created)[:LETTERS],
            "created": created,
            "task": task.name,
            "task_id": fingerprint(task.name, *sorted(items))[:LETTERS],
            "task_version": 0,
            "task_args": asdict(settings),
            "dataset": {
                "name": str(facts.get("reference", task.name)),
                "samples": len(items),
                "sample_ids": list(items),
                "shuffled": False,
            },
            "model": subject,
            "model_generate_config": config,
            "config": {"epochs": 1},
            "packages": {"midblock": version("midblock")},
            "metadata": {"kind": task.kind, "rule": task.rule, **{name: str(value) for name, value in facts.items()}},
        },
        "plan": {"name": "plan", "steps": [{"solver": "generate" if task.generates else "score"}], "config": config},
        "results": {
            "total_samples": len(items),
            "completed_samples": len(rows),
            "scores": [{**score, "scored_samples": len(rows), "unscored_samples": len(items) - len(rows)}],
        },
        "stats": {"started_at": created, "completed_at": created},
        "samples": [_sample(subject, task, items[row.item], row) for row in rows],
    }


def _sample(subject: str, task: Task, item: Item, row: Scored) -> dict[str, Any]:
    asked = [{"role": turn.role, "content": turn.content} for turn in _turns(item)]
    said = {"role": "assistant", "content": row.output, "source": "generate"}
    choice = {"message": said, "stop_reason": "max_tokens" if row.cut else "stop"}
    score = {"value": row.value, "answer": row.answer, "explanation": row.failed or row.output or None}
    return {
        "id": item.id,
        "epoch": 1,
        "input": item.example.prompt,
        "target": row.expected,
        "messages": [*asked, said] if task.generates else asked,
        "output": {"model": subject, "choices": [choice] if task.generates else [], "completion": row.output},
        "scores": {task.metric: {**score, "metadata": {"weight": row.weight}}},
        "metadata": {"cluster": item.cluster} if item.cluster else {},
    }


def _turns(item: Item) -> Sequence[Any]:
    """What was asked: all turns but the answer, of roles that Inspect knows."""
    turns = item.example.messages[:-1] if item.example.answered else item.example.messages
    return [turn for turn in turns if turn.role in ("system", "user", "assistant")]
