"""Builtin datasets: made from a seed, with no network: by reasoning-gym, without end, or from written questions."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, cycle, islice
from typing import Any

from midblock.base import MidblockError, derive, unknown
from midblock.base.options import told_number
from midblock.data.questions import MIXED, WRITTEN, written_questions
from midblock.data.records import Record, Records

DEFAULT_SPLIT = "test"
DEFAULT_SAMPLES = 1000
MOST = 1_000_000  # questions drawn or passed over; they are made one by one
PART = 1000  # questions made by one generator
PATIENCE = 1000  # draws in a row without a new question before the set counts as used up


def _worked_solution(item: Mapping[str, Any]) -> str:
    """The steps, and behind #### exactly the answer that is scored (the generator writes some as 18.0 there)."""
    steps = item["metadata"]["answer_cot"].rpartition("####")[0].rstrip()
    return f"{steps}\n#### {item['answer']}"


def _answer(item: Mapping[str, Any]) -> str:
    answer: str = item["answer"]
    return answer


# Each builtin set, and the answer it is taught with.
BUILTIN_SETS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "gsm_symbolic": _worked_solution,
    "chain_sum": _answer,
    "everyday": _answer,
    "elsewhere": _answer,
    "questions": lambda item: _worked_solution(item) if "answer_cot" in item.get("metadata", {}) else _answer(item),
}
OF_REASONING_GYM = ("chain_sum", "gsm_symbolic")

UNABLE = frozenset({"composite"})  # sets that are nothing without others


def make_rows(name: str, *, split: str | None, num_samples: int | None, seed: int, skip: int) -> Records:
    """Make questions of a builtin set.

    A question belongs to "test" or "train" by a hash of its own words, so the two never share one, whatever the seeds
    and however many are drawn; within a split no question comes twice. Both are made from the same templates, a hundred
    or so, of written sets two dozen: "test" asks whether the kind of question was learned, not whether a new kind is
    understood.

    Args:
        name: a name of `BUILTIN_SETS`.
        split: "train" or "test" (the default).
        num_samples: how many; 1000 when None.
        seed: another seed gives other questions; with the same seed a longer draw begins with the shorter one.
        skip: how many to pass over first.

    Raises:
        MidblockError: for an unknown name or split, when reasoning-gym is not installed, or no new question comes.
    """
    split = split or DEFAULT_SPLIT
    if name not in BUILTIN_SETS:
        raise unknown("builtin dataset", name, BUILTIN_SETS)
    if split not in ("train", "test"):
        raise unknown("split", split, ("train", "test"))
    size = DEFAULT_SAMPLES if num_samples is None else num_samples
    if skip + size > MOST:
        what = f"{told_number(size)} samples" + (f" after skipping {told_number(skip)}" if skip else "")
        raise MidblockError(f"builtin:{name} gives at most {MOST:,} questions; {what} were asked for")
    records = [_record(name, entry) for entry in islice(_questions(name, split, seed), skip, skip + size)]
    return Records.from_records(f"builtin:{name}", records, split=split, layout="question/answer")


@dataclass(frozen=True, eq=False)
class Entry:
    """A question of a reasoning-gym set, with what its own scorer needs.

    Attributes:
        question: as a model is asked it.
        answer: a right one; "" where the set has none to show (its scorer checks what it is given).
        template: what the question is one of many variants of; None where that is not known.
        score: the set's own scorer: from an answer (None for none) to its marks, 1 for a right one.
        item: all that the generator made.
    """

    question: str
    answer: str
    template: int | str | None
    score: Callable[[str | None], float]
    item: Mapping[str, Any]


def make_entries(name: str, *, split: str | None, num_samples: int | None, seed: int) -> list[Entry]:
    """Make questions of any reasoning-gym set; of a builtin one, the very questions of `make_rows`.

    Args:
        name, split, num_samples, seed: as of `make_rows`.

    Raises:
        MidblockError: as `make_rows`, or the generator fails.
    """
    split = split or DEFAULT_SPLIT
    if split not in ("train", "test"):
        raise unknown("split", split, ("train", "test"))
    size = DEFAULT_SAMPLES if num_samples is None else num_samples
    if not 1 <= size <= MOST:
        raise MidblockError(f"{name} gives 1 to {MOST:,} questions; {told_number(size)} were asked for")
    return list(islice(_questions(name, split, seed), size))


def reasoning_sets() -> list[str]:
    """Names of the sets that reasoning-gym makes, the builtin ones alone where it is not installed."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        return sorted(OF_REASONING_GYM)
    return sorted(name for name in DATASETS if name not in UNABLE)


def _record(name: str, entry: Entry) -> Record:
    variant = {} if entry.template is None else {"question_id": entry.template}
    return {"question": entry.question, "answer": BUILTIN_SETS[name](entry.item), **variant}


def _questions(name: str, split: str, seed: int) -> Iterator[Entry]:
    seen: set[str] = set()
    last = 0
    for draw, entry in enumerate(_entries(name, split, seed)):
        if entry.question not in seen and split_of(entry.question) == split:
            seen.add(entry.question)
            last = draw
            yield entry
        elif draw - last > PATIENCE:
            raise MidblockError(f"builtin:{name} has no more than {len(seen)} different questions to give")


def split_of(question: str) -> str:
    """Say which split a question belongs to: one in five is held out as "test"."""
    words = " ".join(question.lower().split())
    return "test" if hashlib.sha256(words.encode()).digest()[0] % 5 == 0 else "train"


def _entries(name: str, split: str, seed: int) -> Iterator[Entry]:
    if name in WRITTEN:
        return (
            Entry(each["question"], each["answer"], None, _unscored, each) for each in written_questions(name, seed)
        )
    if name in MIXED:
        return _mixed(name, split, seed)
    return _generated(name, split, seed)


def _unscored(answer: str | None) -> float:
    return 0.0  # whether a written answer is right, no rule can tell


def _mixed(name: str, split: str, seed: int) -> Iterator[Entry]:
    """Several sets in turn; the variants of a template are those of its own set."""
    parts = {part: _entries(part, split, seed) for part in MIXED[name]}
    for part in cycle(MIXED[name]):
        entry = next(parts[part])
        yield entry if entry.template is None else replace(entry, template=f"{part} {entry.template}")


def _generated(name: str, split: str, seed: int) -> Iterator[Entry]:
    try:
        import reasoning_gym
    except ImportError as error:
        what = f"builtin:{name} needs the package reasoning-gym"
        raise MidblockError(what, hint='pip install "midblock[demo]"') from error
    # The generator wants its size beforehand; endless means one after another, each from its own seed.
    for part in count():
        made = reasoning_gym.create_dataset(name, size=PART, seed=derive(seed, name, split, part))
        templates = getattr(
            made, "task_indices", [None] * PART
        )  # questions of one template differ in names and numbers
        for item, template in zip(islice(made, PART), templates, strict=True):
            score = partial(made.score_answer, entry=item)
            answer = "" if item["answer"] is None else str(item["answer"])
            yield Entry(item["question"], answer, template, score, item)
