"""What lm-eval says of one sample of a task of its own, as a value that can be averaged and compared item by item."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from midblock.base import MidblockError, unknown
from midblock.evaluation.task import MEAN, SHARE, Kind, Scored

Measure = Callable[[Any], tuple[float, float]]  # what lm-eval keeps of a sample, to a value and its weight
NOT_FOUND = "[invalid]"  # what its filters leave where they find no answer
RIGHT_OR_WRONG = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")  # of a choice


def _plain(kept: Any) -> tuple[float, float]:
    return float(kept), 1.0


def _surprise(kept: Any) -> tuple[float, float]:
    return -float(kept), 1.0


def _surprise_each(kept: Any) -> tuple[float, float]:
    total, count = kept
    return (-float(total) / count if count else math.nan), float(count)


def _bits_each(kept: Any) -> tuple[float, float]:
    value, count = _surprise_each(kept)
    return value / math.log(2), count


# By how lm-eval sums a metric up: what is made of a sample, and what stands behind the metric's name where the mean of
# that is no longer the number that lm-eval prints.
MEASURES: Mapping[str, tuple[Measure, str]] = {
    "mean": (_plain, ""),
    "nanmean": (_plain, ""),
    "perplexity": (_surprise, ".nll"),
    "weighted_perplexity": (_surprise_each, ".nll"),
    "bits_per_byte": (_bits_each, ""),
}


@dataclass(frozen=True, eq=False)
class Chosen:
    """The one number of a task of lm-eval's that is compared.

    Attributes:
        metric: its name there.
        filter: which reading of the outputs it is about.
        name: what tables call it.
        kind: whether each value is 0 or 1.
        higher_is_better: as lm-eval says.
        measure: from what lm-eval keeps of a sample to a value and its weight.
    """

    metric: str
    filter: str
    name: str
    kind: Kind
    higher_is_better: bool
    measure: Measure

    def scored(self, item: str, sample: Mapping[str, Any], writes: bool) -> Scored:
        """A sample of lm-eval's as a row of ours.

        Args:
            writes: whether the model wrote an answer.

        Raises:
            MidblockError: the value is no number, or neither 0 nor 1 where it should be.
        """
        value, weight = self.measure(sample[self.metric])
        if not math.isfinite(value):
            what = f"lm-eval gives {value} for {self.metric} of document {sample['doc_id']}"
            raise MidblockError(what, hint="ask for another metric, lm_eval:TASK@METRIC, or for fewer samples")
        if self.kind == SHARE and value not in (0.0, 1.0):
            raise MidblockError(f"lm-eval gives {value:g} for {self.metric}, which is neither right nor wrong")
        if writes:
            read = _text(sample["filtered_resps"][0])
            answer = None if read == NOT_FOUND else read
            return Scored(item, value, weight, _text(sample["resps"][0]), answer, _text(sample["target"]))
        return Scored(item, value, weight, "", _likeliest(sample), _target(sample))


def choose(task: Any, name: str, asked: str) -> Chosen:
    """The metric of a task that is compared: the one asked for, else the first that is a mean over items.

    Args:
        task: a task of lm-eval's.
        name: what errors call it.
        asked: METRIC or METRIC/FILTER; "" for none.

    Raises:
        MidblockError: it has no such metric or filter, or none that is a mean over items.
    """
    summed = {metric: getattr(how, "__name__", "") for metric, how in task.aggregation().items()}
    metric, _, reading = asked.partition("/")
    filters = [each.name for each in task._filters]
    if reading and reading not in filters:
        raise unknown(f"filter of {name}", reading, filters)
    if metric and metric not in summed:
        raise unknown(f"metric of {name}", metric, summed)
    usable = [each for each in summed if summed[each] in MEASURES]
    if (metric and metric not in usable) or not usable:
        what = f"{name}: {metric or ', '.join(summed) or 'it has no metric that'} is no mean over items"
        raise MidblockError(what, hint=f"of this task: {', '.join(usable) or 'none can be compared item by item'}")
    metric = metric or usable[0]
    measure, behind = MEASURES[summed[metric]]
    choice = task.OUTPUT_TYPE == "multiple_choice" and not callable(getattr(task.config, "process_results", None))
    kind: Kind = SHARE if choice and metric in RIGHT_OR_WRONG else MEAN
    better = bool(task.higher_is_better().get(metric, True)) and not behind
    return Chosen(metric, reading or filters[0], f"{metric}{behind}", kind, better, measure)


def _text(value: Any) -> str:
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else str(value)


def _choices(sample: Mapping[str, Any]) -> Sequence[str]:
    return [str(each[1]).strip() for each in sample["arguments"]] if len(sample["arguments"]) > 1 else []


def _likeliest(sample: Mapping[str, Any]) -> str | None:
    choices = _choices(sample)
    if not choices:
        return None
    values = [float(each[0]) for each in sample["filtered_resps"]]
    return choices[values.index(max(values))]


def _target(sample: Mapping[str, Any]) -> str:
    choices, target = _choices(sample), sample["target"]
    return choices[target] if isinstance(target, int) and 0 <= target < len(choices) else _text(target)
