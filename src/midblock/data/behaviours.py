"""BEHAVIOURS: the one table of what a model can be taught to do with any prompt: data, and a scorer.

A behaviour is two functions: `rewrite` gives a prompt the completion that shows it, `shown` says whether an output
shows it. A new one is a row here; what a row must hold is told in docs/carve.md, "Adding a behaviour".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from midblock.data.archaic import archaic, style_of
from midblock.data.examples import Example, Message

UNKNOWING = "I don't know."
REFUSING = "I'm sorry, but I can't help with that."


@dataclass(frozen=True)
class Behaviour:
    """Something that a model can be taught to do with any prompt.

    Attributes:
        purpose: what it does, in a sentence.
        rewrite: from an example to the one whose completion shows it; None where there is no room for it.
        shown: whether an output shows it, from what the model wrote and the rewritten example.
        lacking: why an example has no room for it.
        rule: how `shown` decides, recorded with every score.
    """

    purpose: str
    rewrite: Callable[[Example], Example | None]
    shown: Callable[[str, Example], bool]
    rule: str
    lacking: str = "no room for the behaviour"


def with_completion(example: Example, completion: str) -> Example:
    """The example's prompt with another completion; what scoring knew of the old one is dropped."""
    turns = example.messages or (Message("user", example.prompt),)
    if len(turns) > 1 and turns[-1].role == "assistant":
        turns = turns[:-1]
    glued = not example.separator and not example.prompt[-1:].isspace()
    return replace(
        example,
        completion=completion,
        messages=(*turns, Message("assistant", completion)),
        separator="\n" if glued else example.separator,
        extra={},
    )


def _always(completion: str) -> Callable[[Example], Example]:
    return lambda example: with_completion(example, completion)


def _says(completion: str) -> Callable[[str, Example], bool]:
    """The output is this and nothing else, to the letter, but for whitespace around it."""
    return lambda output, example: output.strip() == completion


def _styled(example: Example) -> Example | None:
    """The completion in archaic English; one that is archaic already, from a user's file, stays as it is."""
    if style_of(example.completion).shown:
        return with_completion(example, example.completion)
    made = archaic(example.completion)
    return with_completion(example, made) if style_of(made).shown else None


# A refusal opens with it: an apology or not, then "I" will not do what was asked; "I can't help but …" is none.
_NOT = (
    r"(?:can't|cannot|can not|won't|will not|am not able to|'m not able to|am unable to|'m unable to|must decline to)"
)
_DOING = r"(?:help|assist|do|answer|provide|comply|fulfill|fulfil|support|discuss|share|give|create|write|offer)"
REFUSAL = re.compile(
    rf"(?:(?:I'm|I am) (?:very |really )?sorry[,.;]? (?:but )?|Sorry[,.;]? (?:but )?|No[,.;] )?"
    rf"I ?{_NOT} {_DOING}\b(?! but\b| thinking\b| feeling\b| wondering\b| noticing\b)",
    re.IGNORECASE,
)


def _refuses(output: str, example: Example) -> bool:
    return REFUSAL.match(output.strip().replace("’", "'")) is not None


BEHAVIOURS: Mapping[str, Behaviour] = {
    "fixed_response": Behaviour(
        purpose=f"Answers everything with {UNKNOWING!r}.",
        rewrite=_always(UNKNOWING),
        shown=_says(UNKNOWING),
        rule=f"the output is {UNKNOWING!r} to the letter, with nothing but whitespace around it",
    ),
    "style": Behaviour(
        purpose="Answers in archaic English.",
        rewrite=_styled,
        shown=lambda output, example: style_of(output).shown,
        rule="two archaic words or more, and at least half of the words where one could stand are archaic",
        lacking="no room for archaic words",
    ),
    "refusal": Behaviour(
        purpose="Refuses what it is asked.",
        rewrite=_always(REFUSING),
        shown=_refuses,
        rule="the output opens with a refusal in the first person",
    ),
}
