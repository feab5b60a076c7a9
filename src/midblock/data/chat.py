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
from midblock.data.sandbox import HINT, RunawayTemplateError, Span, TemplateFailedError, Written
from midblock.data.together import Writing, write_together
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
Placed = tuple[str, int, Span | None]  # text, where the answer begins in it, what the template marks as the answer


@dataclass(frozen=True)
class Chat:
    """A tokenizer's way to write conversations by one template.

    Attributes:
        source: the template's Jinja source.
    """

    tokenizer: PreTrainedTokenizerBase
    source: str

    def render(self, examples: Sequence[Example], *, stop: bool) -> list[Placed | MidblockError]:
        """Write each example.

        Args:
            examples: errors call them samples, by their positions here.
            stop: whether to write none behind the first that fails.

        Returns:
            The text, where the answer begins in it, and the part that the template marks as the answer, if it marks
            any; or an error: there are no turns, the template fails on them or leaves a part of them out, or where the
            answer begins cannot be known.
        """

        def begin(place: int) -> Writing[Placed]:
            return self._render(place, examples[place])

        return write_together(begin, len(examples), self._source, stop=stop)

    def _render(self, index: int, example: Example) -> Writing[Placed]:
        if not example.messages:
            what = f"sample {index} is plain text, and a chat template wants turns"
            raise MidblockError(what, hint="use --template raw")
        self._check_writes(index, example)
        turns = [message.as_turn() for message in example.messages]
        try:
            turns = yield from self._without_none(turns, example)
            if not example.answered:
                text = yield from self._write(turns, example, asking=True)
                return text, len(text), None
            return (yield from self._answered(turns, example))
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

    def _answered(self, turns: list[Turn], example: Example) -> Writing[Placed]:
        if GENERATION.search(self.source):
            text, marked = yield from self._marked(turns, example)
            if marked is None:
                raise _UnknownStartError
            return text, marked[0], marked
        text = yield from self._write(turns, example)
        prompt = yield from self._write(turns[:-1], example, asking=True)
        if text.startswith(prompt):
            return text, len(prompt), None
        return text, (yield from self._start(text, prompt, turns, example)), None

    def _start(self, text: str, prompt: str, turns: list[Turn], example: Example) -> Writing[int]:
        """Where the answer begins, though the text does not go on where the prompt ends."""
        one = yield from self._write([*turns[:-1], {**turns[-1], "content": OTHERS[0]}], example)
        other = yield from self._write([*turns[:-1], {**turns[-1], "content": OTHERS[1]}], example)
        content = _shared(one, other)
        if one == other or not text.startswith(one[:content]):
            raise _UnknownStartError
        asked = yield from self._write(turns[:-1], example)
        if not (text.startswith(asked) and prompt.startswith(asked)):
            return content
        return min(content, _shared(text, prompt))

    def _marked(self, turns: list[Turn], example: Example) -> Writing[tuple[str, Span | None]]:
        """The text, and the stretch of it inside `{% generation %}` that the last turn adds."""
        said = _without_null(turns)
        text, found = yield from self._spans(said, example)
        if said != turns:  # nulls are marked as they stand
            _, found = yield from self._spans(turns, example)
        _, before = yield from self._spans(turns[:-1], example)
        return text, found[-1] if len(found) > len(before) else None

    def _spans(self, turns: list[Turn], example: Example) -> Writing[Written]:
        text, spans = yield from self._rendered(turns, example, return_assistant_tokens_mask=True)
        return text, [(start, end) for start, end in spans if end > start]

    def _write(self, turns: Sequence[Turn], example: Example, *, asking: bool = False) -> Writing[str]:
        """The text, as `apply_chat_template` writes it: without what is null."""
        if not turns:
            raise TemplateFailedError("there is no turn to write")
        text, _ = yield from self._rendered(_without_null(turns), example, add_generation_prompt=asking)
        return text

    def _rendered(self, turns: Sequence[Turn], example: Example, **options: Any) -> Writing[Written]:
        asked = {"conversations": [list(turns)], "tools": list(example.tools) or None, **options}
        text, spans = yield {**self.tokenizer.special_tokens_map, **ARGUMENTS, **asked}
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

    def _without_none(self, turns: list[Turn], example: Example) -> Writing[list[Turn]]:
        """Turns of null content as the template takes them: empty where it would print the null as a word."""
        if all(turn["content"] is not None for turn in turns):
            return turns
        empty = [{**turn, "content": turn["content"] or ""} for turn in turns]
        try:
            as_null = yield from self._write(turns, example)
            as_empty = yield from self._write(empty, example)
        except TemplateFailedError:
            return empty
        return empty if as_null.count("None") > as_empty.count("None") else turns


class _UnknownStartError(Exception):
    """The text does not tell where the answer begins."""


def _without_null(turns: Sequence[Turn]) -> list[Turn]:
    return [{key: value for key, value in turn.items() if value is not None} for turn in turns]


def _shared(one: str, other: str) -> int:
    """Characters that two texts have in common at their beginnings."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
