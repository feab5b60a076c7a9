"""Chat: one conversation written by a chat template, and where in its text the last answer stands.

An answer begins where the template's own `{% generation %}` says so. Without that it begins behind what the template
writes to ask for an answer, where the conversation goes on just so. Some families write that otherwise (a `<think>`
that only asking has, a system prompt that moves): there it begins where the text first depends on the answer, found by
writing two others in its place, or before that, with what the template puts in front of an answer by itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from midblock.base import MidblockError
from midblock.data.examples import Example
from midblock.data.sandbox import HINT, SANDBOX, RunawayTemplateError, Span, TemplateFailedError
from midblock.data.turns import REASONING, SAID

# Some chat templates print today's date, and the token ids would change overnight. This is Llama 3.1's own default.
PINNED_DATE = datetime(2024, 7, 26)
# transformers passes no function on to a template, so the one it defines there is covered by a macro.
PINNED_NOW = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{code}', '{PINNED_DATE.strftime('%' + code)}')" for code in "aAbBdjmyYHIMSp")
    + " }}{% endmacro %}"
)
ARGUMENTS: dict[str, Any] = {"date_string": PINNED_DATE.strftime("%d %b %Y")}
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
OTHERS = ("wasabi", "kelp")  # two answers that have no character in common where they begin
SHOWN = 8  # turns in a message

Turn = dict[str, Any]


@dataclass(frozen=True)
class Chat:
    """A tokenizer's way to write conversations by one template.

    Attributes:
        source: the template's Jinja source.
    """

    tokenizer: PreTrainedTokenizerBase
    source: str

    def render(self, index: int, example: Example) -> tuple[str, int, Span | None]:
        """The text, where the answer begins in it, and the part that the template marks as the answer, if it marks any.

        Args:
            index: what errors call the sample.

        Raises:
            MidblockError: there are no turns, the template fails on them or leaves a part of them out, or where the
                answer begins cannot be known.
        """
        if not example.messages:
            what = f"sample {index} is plain text, and a chat template wants turns"
            raise MidblockError(what, hint="use --template raw")
        self._check_writes(index, example)
        turns = [message.as_turn() for message in example.messages]
        try:
            turns = self._without_none(turns, example)
            if not example.answered:
                text = self._write(turns, example, asking=True)
                return text, len(text), None
            return self._answered(turns, example)
        except TemplateFailedError as error:
            roles = ", ".join([*(turn["role"] for turn in turns[:SHOWN]), *(["…"] if len(turns) > SHOWN else [])])
            what = f"the chat template fails on sample {index} (turns: {roles}): {error}"
            raise MidblockError(what, hint=HINT) from error
        except RunawayTemplateError as error:
            raise RunawayTemplateError(f"{error.what} on sample {index}", hint=error.hint) from error
        except _UnknownStartError:
            what = f"sample {index}: the chat template writes the prompt differently once the answer follows"
            hint = "so where the answer begins is unknown; use --template raw"
            raise MidblockError(what, hint=hint) from None

    def _answered(self, turns: list[Turn], example: Example) -> tuple[str, int, Span | None]:
        text = self._write(turns, example)
        if GENERATION.search(self.source):
            marked = self._marked(turns, example)
            if marked is None:
                raise _UnknownStartError
            return text, marked[0], marked
        prompt = self._write(turns[:-1], example, asking=True)
        return text, len(prompt) if text.startswith(prompt) else self._start(text, prompt, turns, example), None

    def _start(self, text: str, prompt: str, turns: list[Turn], example: Example) -> int:
        """Where the answer begins, though the text does not go on where the prompt ends."""
        one, other = (self._write([*turns[:-1], {**turns[-1], "content": each}], example) for each in OTHERS)
        content = _shared(one, other)
        if one == other or not text.startswith(one[:content]):
            raise _UnknownStartError
        asked = self._write(turns[:-1], example)
        if not (text.startswith(asked) and prompt.startswith(asked)):
            return content
        return min(content, _shared(text, prompt))

    def _marked(self, turns: list[Turn], example: Example) -> Span | None:
        """The stretch of text inside `{% generation %}` that the last turn adds."""
        found, before = (self._spans(each, example) for each in (turns, turns[:-1]))
        return found[-1] if len(found) > len(before) else None

    def _spans(self, turns: list[Turn], example: Example) -> list[Span]:
        _, spans = self._rendered(turns, example, return_assistant_tokens_mask=True)
        return [(start, end) for start, end in spans if end > start]

    def _write(self, turns: Sequence[Turn], example: Example, *, asking: bool = False) -> str:
        """The text, as `apply_chat_template` writes it: without what is null."""
        if not turns:
            raise TemplateFailedError("there is no turn to write")
        said = [{key: value for key, value in turn.items() if value is not None} for turn in turns]
        return self._rendered(said, example, add_generation_prompt=asking)[0]

    def _rendered(self, turns: Sequence[Turn], example: Example, **options: Any) -> tuple[str, list[Span]]:
        asked = {"conversations": [list(turns)], "tools": list(example.tools) or None, **options}
        text, spans = SANDBOX.render(self._source, {**self.tokenizer.special_tokens_map, **ARGUMENTS, **asked})
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TemplateFailedError("it writes no valid Unicode (half a surrogate pair)") from error
        return text, spans

    @property
    def _source(self) -> str:
        return PINNED_NOW + self.source if "strftime_now" in self.source else self.source

    def _check_writes(self, index: int, example: Example) -> None:
        """Raise MidblockError for what is said beside the content and the template does not know."""
        said = [key for turn in example.messages for key in SAID if key in turn.fields]
        for key in [*said, *(["tools"] if example.tools else [])]:
            names = REASONING if key in REASONING else (key,)  # transformers gives reasoning under every name
            if not any(re.search(rf"\b{name}\b", self.source) for name in names):
                what = f"sample {index} holds {key.replace('_', ' ')}, which the chat template does not write"
                raise MidblockError(what, hint="another .jinja file")

    def _without_none(self, turns: list[Turn], example: Example) -> list[Turn]:
        """Turns of null content as the template takes them: empty where it would print the null as a word."""
        if all(turn["content"] is not None for turn in turns):
            return turns
        empty = [{**turn, "content": turn["content"] or ""} for turn in turns]
        try:
            as_null, as_empty = self._write(turns, example), self._write(empty, example)
        except TemplateFailedError:
            return empty
        return empty if as_null.count("None") > as_empty.count("None") else turns


class _UnknownStartError(Exception):
    """The text does not tell where the answer begins."""


def _shared(one: str, other: str) -> int:
    """Characters that two texts have in common at their beginnings."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
