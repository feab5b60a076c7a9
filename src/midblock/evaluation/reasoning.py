"""Tasks of reasoning-gym: endless questions made from a seed, with no network, each set scored by its own scorer.

The two builtin sets ask the very questions of `builtin:gsm_symbolic` and `builtin:chain_sum`, held out from what
training draws; an answer counts where the set's scorer gives it full marks. Of other sets the mean of their scorer's
marks is taken, 0 to 1: some give a part of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from midblock.base import MidblockError, unknown
from midblock.data import BUILTIN_SETS, Example, Message
from midblock.data.examples import hash_examples
from midblock.data.layouts import LAYOUTS
from midblock.data.procedural import Entry, make_entries, reasoning_sets
from midblock.evaluation.answered import Answered, Verdict, known_reader
from midblock.evaluation.task import MEAN, SHARE, Item, Kind, Task, TaskRequest, items_of

# How answers to builtin sets end, as their completions write them; an answer to any other set is all of the text.
READERS: Mapping[str, str] = {"gsm_symbolic": "marked", "chain_sum": "first_line"}
# What a scorer may raise of an answer that is not written as it wants; it is a wrong answer then.
UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, SyntaxError, AssertionError)


def open_reasoning(request: TaskRequest) -> Task:
    """A reasoning-gym set by its name, or `reasoning_gym:NAME`."""
    name = request.argument
    if name not in (sets := reasoning_sets()):
        raise unknown("reasoning-gym set", name, sets)
    reader = known_reader(request.settings.reader) or READERS.get(name, "exact")
    try:
        entries = make_entries(name, split=request.split, num_samples=request.num_samples, seed=request.seed)
    except (MidblockError, MemoryError):
        raise
    except Exception as error:  # a generator of reasoning-gym: it may want a package that is not here, or a setting
        raise MidblockError(f"reasoning-gym cannot make {name}: {type(error).__name__}: {error}") from error
    examples = [_example(name, entry) for entry in entries]
    items = items_of(name, examples)
    known = dict(zip((item.id for item in items), entries, strict=True))
    whole = name in BUILTIN_SETS
    kind: Kind = SHARE if whole else MEAN
    asked = Answered(
        reader, lambda item: known[item.id].answer, lambda item, answer: _marks(known, item, answer, whole)
    )
    facts = {
        "reference": f"reasoning_gym:{name}",
        "split": request.split or "test",
        "content_hash": hash_examples(examples),
    }
    return Task(
        request.name,
        "exact_match" if whole else "score",
        kind,
        items,
        asked.run,
        rule=reader,
        generates=True,
        facts=tuple(facts.items()),
    )


def _example(name: str, entry: Entry) -> Example:
    if not entry.answer:
        return Example(entry.question, messages=(Message("user", entry.question),))
    taught = BUILTIN_SETS[name](entry.item) if name in BUILTIN_SETS else entry.answer
    example = LAYOUTS["question/answer"].read({"question": entry.question, "answer": taught})
    variant = "" if entry.template is None else str(entry.template)
    return Example(example.prompt, example.completion, example.messages, example.separator, example.extra, (), variant)


def _marks(known: Mapping[str, Entry], item: Item, answer: str | None, whole: bool) -> Verdict:
    """What the set's own scorer gives; full marks or nothing where `whole`."""
    if answer is None:
        return 0.0, ""
    try:
        marks = min(max(float(known[item.id].score(answer)), 0.0), 1.0)
    except UNREADABLE as error:
        return 0.0, f"its scorer takes no such answer ({type(error).__name__})"
    return (float(marks == 1.0) if whole else marks), ""
