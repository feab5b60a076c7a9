"""What an evaluation found, in one sentence, and what a reader of it must know."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from midblock.evaluation.evaluate.tables import BETTER, UNTOLD, Answers
from midblock.evaluation.task import Scored, Task

OFTEN = 0.1  # of the outputs: from here on a reader is told
WORD = 40  # letters, up to which an expected answer may stand among other words


def headline(scores: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> str:
    """The clearest difference, or that there is none, or of a lone model its first score."""
    if not comparisons:
        first = scores[0]
        return f"{first['model']}: {_level(first)} on {first['task']}{_more(len(scores) - 1)}"
    decided = [each for each in comparisons if each["verdict"] != UNTOLD]
    if not decided:
        each = max(comparisons, key=lambda each: abs(each["difference"]))
        seen = f"{_between(each)}; {_smallest(each)}" if len(comparisons) == 1 else "no difference is clear"
        return f"The evidence does not say which model is better on {_named(comparisons)}: {seen}"
    each = min(decided, key=lambda each: (each["p_holm"], -abs(each["difference"])))
    word = "better" if each["verdict"] == BETTER else "worse"
    others = "" if len(comparisons) == 1 else f"; {len(decided)} of {len(comparisons)} comparisons are decided"
    return f"{each['second']} is {word} than {each['first']} on {each['task']}: {_between(each)}{others}"


def notes_on(scores: Sequence[Mapping[str, Any]], tasks: Sequence[Task], answers: Answers, limit: int) -> list[str]:
    """Which models often gave no answer, said it among other words, or did not stop, and what could not be scored."""
    rules = {task.name: task.rule for task in tasks}
    found = []
    for row in scores:
        name, n = f"{row['model']} on {row['task']}", row["n"]
        if row["cut"] is not None and row["cut"] >= OFTEN * n:
            found.append(f"{name}: {row['cut']} of {n} outputs never stopped and were cut at {limit} tokens.")
        if row["no_answer"] is not None and row["no_answer"] >= OFTEN * n:
            rule = rules[row["task"]]
            found.append(
                f"{name}: {row['no_answer']} of {n} outputs hold no answer by the rule {rule}; they are wrong."
            )
        among = sum(map(_among_other_words, answers[row["model"], row["task"]]))
        if row["no_answer"] is not None and among >= OFTEN * n:
            found.append(
                f"{name}: {among} of {n} outputs hold the expected answer among other words, and are wrong by the rule "
                f"{rules[row['task']]}; another --reader, or --template, may read it."
            )
        if row["failed"]:
            found.append(f"{name}: {row['failed']} of {n} items could not be scored as others are (see samples.jsonl).")
    for task in tasks:
        found += task.notes
        if (clusters := task.clusters) is not None:
            found.append(f"{task.name}: {clusters.note('items')}")
    return found


def _among_other_words(scored: Scored) -> bool:
    """Whether an output that counts as wrong has the expected answer in it, as a word of its own."""
    if scored.value or not scored.expected or len(scored.expected) > WORD:
        return False
    return re.search(rf"(?<![\w.-]){re.escape(scored.expected)}(?![\w]|\.\d)", scored.output) is not None


def _level(row: Mapping[str, Any]) -> str:
    interval = f" ({row['low']:.3f} to {row['high']:.3f})" if row["low"] == row["low"] else ""
    return f"{row['metric'].replace('_', ' ')} {row['value']:.3f}{interval}"


def _more(count: int) -> str:
    return f", and {count} more score{'s' if count > 1 else ''}" if count else ""


def _between(each: Mapping[str, Any]) -> str:
    if each["low"] != each["low"]:  # too few units
        return f"{each['difference']:+.3f}, with too few items for an interval"
    return f"{each['difference']:+.3f} (95 % interval {each['low']:+.3f} to {each['high']:+.3f})"


def _smallest(each: Mapping[str, Any]) -> str:
    if each["detectable"] != each["detectable"]:
        return "nothing differed"
    return f"only {each['detectable']:.3f} or more would have been found in four of five runs"


def _named(comparisons: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(each["task"] for each in comparisons))
    return names[0] if len(names) == 1 else f"{len(names)} tasks"
