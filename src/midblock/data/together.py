"""Together: the conversations of many examples are written with few exchanges, as if it were one after the other.

An exchange with the sandbox takes longer than an honest rendering. So an example's writing is a generator that asks for
one rendering at a time, and what many of them ask for goes into one exchange. What is told is what would be told of one
example after the other: a failure further on counts only when all before it are written, and what a template did to a
conversation that was never told is remembered, not tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from midblock.base import MidblockError
from midblock.data.sandbox import SANDBOX, Answer, RunawayTemplateError, Sandbox, Written

T = TypeVar("T")
Writing = Generator[dict[str, Any], Written, T]  # asks with options of `Sandbox.render`
MOST = 128  # writings under way


def write_together(
    begin: Callable[[int], Writing[T]], count: int, source: str, *, stop: bool, sandbox: Sandbox = SANDBOX
) -> list[T | MidblockError]:
    """Carry out writings.

    Args:
        begin: gives the writing of a place, 0 to `count`-1; it may be asked again for a place.
        source: the template.
        stop: whether to write none behind the first that fails.

    Returns:
        What each writing returned or raised, in order; nothing behind the first that raised if `stop`.
    """
    outcomes: list[T | MidblockError] = []
    most = MOST
    while len(outcomes) < count:
        places = range(len(outcomes), min(len(outcomes) + most, count))
        outcomes += _carry_out([begin(place) for place in places], source, stop, sandbox)
        if isinstance(outcomes[-1], RunawayTemplateError):
            sandbox.give_up(source)
            most = 1  # none of the others will be tried
        if stop and isinstance(outcomes[-1], MidblockError):
            break
    return outcomes


def _carry_out(writings: Sequence[Writing[T]], source: str, stop: bool, sandbox: Sandbox) -> list[T | MidblockError]:
    """What the writings returned or raised, up to the first runaway, with `stop` up to the first that raised."""
    outcomes: dict[int, T | MidblockError] = {}
    asked: dict[int, dict[str, Any]] = {}  # in the order of the places, at every time
    answers: dict[int, Answer | None] = dict.fromkeys(range(len(writings)))
    while answers:
        for place, answer in answers.items():
            try:
                asked[place] = _go_on(writings[place], answer)
                continue
            except StopIteration as ended:
                outcomes[place] = ended.value
            except MidblockError as error:
                outcomes[place] = error
            asked.pop(place, None)
            if isinstance(outcomes[place], MidblockError if stop else RunawayTemplateError):
                asked, outcomes = _before(asked, place), _before(outcomes, place + 1)
                break
        found = sandbox.render_some(source, list(asked.values()), stop=stop) if asked else []
        answers = dict(zip(asked, found, strict=False))
    return [outcomes[place] for place in sorted(outcomes)]


def _go_on(writing: Writing[T], answer: Answer | None) -> dict[str, Any]:
    """What the writing asks for next."""
    if answer is None:
        return next(writing)
    return writing.throw(answer) if isinstance(answer, Exception) else writing.send(answer)


def _before(found: dict[int, Any], place: int) -> dict[int, Any]:
    return {each: value for each, value in found.items() if each < place}
