"""Tasks whose answer is a program: it is run with the problem's own tests and counts where the last one is through.

The model continues the beginning of a function (HumanEval's form). Base models go on behind its end, so what they wrote
is cut where the next thing begins at the left margin; models that chat write it whole, in a fence. Each program runs in
a process of its own (`midblock.evaluation.isolation`), which is tried out before the first one. Cost: generating, and
some 0.05 s a program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from midblock.base import MidblockError, Progress
from midblock.evaluation.answered import drawn, facts_of, notes_of, write_answers
from midblock.evaluation.isolation.check import check_isolation
from midblock.evaluation.isolation.program import run_program
from midblock.evaluation.task import SHARE, Item, Scored, Subject, Task, TaskRequest, TaskSettings, items_of

# What begins at the left margin behind the end of a function (Chen et al. 2021).
STOPS = ("\nclass ", "\ndef ", "\n#", "\n@", "\nif ", "\nprint", "\nassert ", "\nimport ", "\nfrom ", "\n```")
FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:\n```|\Z)", re.DOTALL)
BEGINS = re.compile(r"^(?:import |from \w+ import |async def |def |class |@)", re.MULTILINE)
PASSED = "passes its tests"


def open_humaneval(request: TaskRequest) -> Task:
    """`humaneval` from the hub, or `humaneval:FILE`: pass@1 of the first, greedy program.

    Raises:
        MidblockError: running code was not allowed, the limits cannot be had here, or problems come without tests.
    """
    if not request.settings.allow_code:
        what = f"{request.name} runs programs that models write"
        raise MidblockError(what, hint="--allow-code lets it, each in a process with limits and no network")
    data = request.argument or "humaneval"
    examples = drawn(request, data)
    for place, example in enumerate(examples):
        if missing := [name for name in ("test", "entry_point") if not example.extra.get(name)]:
            what = f"{request.name}: problem {place} has no {missing[0]!r} to run"
            raise MidblockError(what, hint="columns: prompt, canonical_solution, test, entry_point")
    notes = (*notes_of(request, examples), *check_isolation())
    facts = tuple(facts_of(examples).items())
    items = items_of("humaneval", examples.examples)
    return Task(request.name, "pass@1", SHARE, items, _run, rule="program", generates=True, facts=facts, notes=notes)


def _run(subject: Subject, items: Sequence[Item], settings: TaskSettings, progress: Progress) -> Iterator[Scored]:
    for item, output, cut in write_answers(subject, items, settings, progress):
        extra = item.example.extra
        code = read_code(output, extra["entry_point"])
        tests = f"{extra['test']}\ncheck({extra['entry_point']})\n"
        outcome = run_program(item.example.prompt + (code or ""), tests)
        failed = outcome.reason if outcome.stopped else ""  # a test that fails tells as much as one that is passed
        yield Scored(item.id, float(outcome.passed), 1.0, output, code, PASSED, cut, failed)


def read_code(output: str, name: str) -> str | None:
    """The part of what was written that continues the problem's prompt, or writes the function anew.

    The first fence that defines the function, else the first fence. Without one all of it up to the function's end;
    where that writes the function anew, from the first line that is code.

    Args:
        name: the function that is asked for.

    Returns:
        Source to stand behind the prompt; None where nothing was written.
    """
    fences = [found[1] for found in FENCED.finditer(output)]
    if fences:
        code = next((fence for fence in fences if _defines(fence, name)), fences[0])
        return f"\n{code}\n" if code.strip() else None
    whole = _defines(output, name)
    begin, start = 0, 0
    if whole:
        first = BEGINS.search(output)
        begin, start = first.start() if first else whole.start(), whole.end()
    ends = [at for stop in STOPS if (at := output.find(stop, start)) >= 0]
    code = output[begin : min(ends, default=len(output))]
    if not code.strip():
        return None
    return f"\n{code}" if whole else code


def _defines(code: str, name: str) -> re.Match[str] | None:
    return re.search(rf"^(?:async )?def {re.escape(name)}\b", code, re.MULTILINE)
