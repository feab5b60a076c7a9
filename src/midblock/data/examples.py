"""Example: one sample of a dataset, whatever columns it came from; ExampleSet: the samples a run works on."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from midblock.base.clusters import Clusters

SHOWN = 3  # reasons, and rows of each


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: "system", "user", "assistant", or another role the chat template knows.
        content: what was said.
        fields: what else chat templates may write of the turn, by their names for it (`tool_calls`, …); `content` is
            among them, as None, where it is null beside tool calls.
    """

    role: str
    content: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def as_turn(self) -> dict[str, Any]:
        """As a chat template takes it."""
        return {"role": self.role, "content": self.content, **self.fields}


@dataclass(frozen=True)
class Example:
    """One sample, as raw text and, where it has turns, as messages.

    Attributes:
        prompt: what the model is given; for a plain text, all of it.
        completion: what it should answer; empty for plain text and for prompts without an answer.
        messages: the same as turns for a chat template; empty for plain text.
        separator: what stands between prompt and completion in raw text.
        extra: what scoring needs besides, such as {"answer": "72"}; never shown to the model.
        tools: functions that the conversation may call, for a chat template.
        question: what it is one of many variants of, such as a template; empty where it is none. Intervals resample all
            variants of a question together.
    """

    prompt: str
    completion: str = ""
    messages: tuple[Message, ...] = ()
    separator: str = "\n"
    extra: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[Any, ...] = ()
    question: str = ""

    @property
    def answered(self) -> bool:
        """Whether an answer comes with it; one of tool calls alone is no text."""
        last = self.messages[-1:]
        return bool(self.completion) or bool(len(self.messages) > 1 and last[0].role == "assistant" and last[0].fields)

    @property
    def text(self) -> str:
        """The raw text: prompt, separator and completion, or the prompt alone."""
        return self.prompt + self.separator + self.completion if self.completion else self.prompt


@dataclass(frozen=True)
class ExampleSet:
    """The samples chosen from one dataset, in the dataset's order.

    Attributes:
        reference: the dataset reference as the user wrote it.
        split: the split that was read; empty for a single file.
        layout: the column layout that was recognised, a name of `LAYOUTS`.
        examples: the samples; their positions here identify them everywhere else.
        content_hash: SHA-256 of what the samples say, the same on every machine.
        left_out: why rows of the data are not among them, and which: no text, or none that the template can write.
        origin: what a reader must know about where they come from.
    """

    reference: str
    split: str
    layout: str
    examples: tuple[Example, ...]
    content_hash: str
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    origin: tuple[str, ...] = ()

    @property
    def clusters(self) -> Clusters | None:
        """Which samples are variants of one question or say the very same, by their places; None where none are."""
        first: dict[tuple[str, str], int] = {}
        said = [(example.text, repr((example.messages, example.tools))) for example in self.examples]
        repeats = {place: first.setdefault(each, place) for place, each in enumerate(said)}
        return Clusters.of([example.question for example in self.examples], repeats)

    def notes(self) -> list[str]:
        """What a reader must know: where they come from, how many rows were left out, and why."""
        notes = list(self.origin)
        for why, rows in list(self.left_out.items())[:SHOWN]:
            more = ", …" if len(rows) > SHOWN else ""
            notes.append(f"{len(rows)} row(s) of the data left out: {why} ({', '.join(rows[:SHOWN])}{more}).")
        if rest := list(self.left_out.values())[SHOWN:]:
            notes.append(f"{sum(map(len, rest))} more row(s) of the data left out for other reasons.")
        return notes

    def without(self, reasons: Mapping[int, str]) -> "ExampleSet":
        """The samples but some, told by their place, and why; the hash stays that of what was read."""
        kept = tuple(example for place, example in enumerate(self.examples) if place not in reasons)
        return replace(self, examples=kept, left_out=left_out(reasons, "sample {}", self.left_out))

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)


def left_out(
    reasons: Mapping[int, str], name: str, before: Mapping[str, tuple[str, ...]] | None = None
) -> dict[str, tuple[str, ...]]:
    """Reasons with what they concern, those that differ in a number alone as one.

    Args:
        name: of what is told by a number, "row {}".
        before: reasons found earlier, to go on from.
    """
    found = dict(before or {})
    for place, why in sorted(reasons.items()):
        why = re.sub(r"\b(sample|message) \d+", r"a \1", why)
        found[why] = (*found.get(why, ()), name.format(place))
    return found


def hash_examples(examples: Iterable[Example]) -> str:
    """Return the SHA-256 (hex) over every field of the examples, in order."""
    digest = hashlib.sha256()
    for example in examples:
        turns = [[turn.role, turn.content, *([turn.fields] if turn.fields else [])] for turn in example.messages]
        parts: list[Any] = [example.prompt, example.separator, example.completion, turns, sorted(example.extra.items())]
        parts += [example.tools] if example.tools else []
        parts += [("question", example.question)] if example.question else []
        digest.update(json.dumps(parts, sort_keys=True, default=str).encode("ascii") + b"\n")
    return digest.hexdigest()
