"""Example: one sample of a dataset, whatever columns it came from; ExampleSet: the samples a run works on."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: "system", "user", "assistant", or another role the chat template knows.
        content: what was said.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One sample, as raw text and, where it has turns, as messages.

    Attributes:
        prompt: what the model is given; for a plain text, all of it.
        completion: what it should answer; empty for plain text and for prompts without an answer.
        messages: the same as turns for a chat template; empty for plain text.
        separator: what stands between prompt and completion in raw text.
        extra: what scoring needs besides, such as {"answer": "72"}; never shown to the model.
    """

    prompt: str
    completion: str = ""
    messages: tuple[Message, ...] = ()
    separator: str = "\n"
    extra: Mapping[str, str] = field(default_factory=dict)

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
    """

    reference: str
    split: str
    layout: str
    examples: tuple[Example, ...]
    content_hash: str

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)


def hash_examples(examples: Iterable[Example]) -> str:
    """Return the SHA-256 (hex) over every field of the examples, in order."""
    digest = hashlib.sha256()
    for example in examples:
        turns = [[message.role, message.content] for message in example.messages]
        parts = [example.prompt, example.separator, example.completion, turns, sorted(example.extra.items())]
        digest.update(json.dumps(parts).encode("ascii") + b"\n")
    return digest.hexdigest()
