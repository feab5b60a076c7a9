"""Rendering: how an Example becomes the one text that every model is given."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from midblock.base import MidblockError, unknown, user_path
from midblock.base.files import size_text
from midblock.base.plain_file import check_plain_file
from midblock.data.chat import Chat, Placed
from midblock.data.examples import Example, ExampleSet
from midblock.data.sandbox import HINT
from midblock.data.turns import SAID

LARGEST = 2**20  # of a template; the longest that models come with have a twentieth of it


@dataclass(frozen=True)
class Rendering:
    """Texts, ready to be tokenised.

    Attributes:
        template: the Jinja source that was used, or "raw".
        texts: one per example.
        boundaries: position of the completion's first character in each text; the text's length where there is none.
        special_tokens: whether the tokenizer is to add its own, because the template did not write them.
        answers: the part of each text that the template's own `{% generation %}` marks as the last answer; None where
            it marks none.
    """

    template: str
    texts: tuple[str, ...]
    boundaries: tuple[int, ...]
    special_tokens: bool
    answers: tuple[tuple[int, int] | None, ...] = ()


def render(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, template: str) -> Rendering:
    """Write each example as one text.

    Args:
        template: "raw" (prompt, separator, completion), "chat" (the tokenizer's own) or the path of a `.jinja` file.

    Raises:
        MidblockError: when there is no such template, it fails on an example, or an example has no turns to put in it.
    """
    if template == "raw":
        for index, example in enumerate(examples):
            if failure := _raw_failure(index, example):
                raise failure
        texts = tuple(example.text for example in examples)
        return Rendering("raw", texts, tuple(_raw_boundary(example) for example in examples), special_tokens=True)
    chat = Chat(tokenizer, _source(tokenizer, template))
    found: list[Placed] = []
    for each in chat.render(examples, stop=True):
        if isinstance(each, MidblockError):
            raise each
        found.append(each)
    texts, boundaries, answers = (tuple(part) for part in zip(*found, strict=True)) if found else ((), (), ())
    return Rendering(chat.source, texts, boundaries, special_tokens=False, answers=answers)


def renderable(examples: ExampleSet, tokenizer: PreTrainedTokenizerBase, template: str) -> ExampleSet:
    """The examples without those that the template cannot write, each of them told with its reason."""
    found: Sequence[object]
    if template == "raw":
        found = [_raw_failure(place, example) for place, example in enumerate(examples)]
    else:
        found = Chat(tokenizer, _source(tokenizer, template)).render(examples.examples, stop=False)
    reasons = {place: each.what for place, each in enumerate(found) if isinstance(each, MidblockError)}
    return examples.without(reasons) if reasons else examples


def _raw_boundary(example: Example) -> int:
    return len(example.text) - len(example.completion)


def _raw_failure(index: int, example: Example) -> MidblockError | None:
    """The error about turns that say more than their content."""
    said = next((key for turn in example.messages for key in SAID if key in turn.fields), None)
    if said is None:
        return None
    what = f"sample {index} holds {said.replace('_', ' ')}, which raw text has no way to write"
    return MidblockError(what, hint="use --template chat")


def _source(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    if template == "chat":
        if not tokenizer.chat_template:
            hint = "use --template raw, or give the path of a .jinja file"
            raise MidblockError("the tokenizer brings no chat template", hint=hint)
        return _own(tokenizer)
    path = user_path(template)
    if path.suffix not in (".jinja", ".jinja2", ".j2"):
        raise unknown("template", template, ("raw", "chat", "a path ending in .jinja"))
    try:
        if path.exists():
            check_plain_file(path)
            if path.stat().st_size > LARGEST:
                raise MidblockError(f"the chat template {path} is larger than {size_text(LARGEST)}")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MidblockError(f"cannot read the chat template {path}: {reason}") from error


def _own(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template that a tokenizer brings, as it was written by whoever made it."""
    try:
        source: object = tokenizer.get_chat_template()
    except ValueError as error:
        reason = str(error).splitlines()[0][:200]
        raise MidblockError(f"the tokenizer's chat template cannot be had: {reason}", hint=HINT) from error
    if not isinstance(source, str) or len(source) > LARGEST:
        raise MidblockError("the tokenizer's chat template is no text that can be used", hint=HINT)
    return source
