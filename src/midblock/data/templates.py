"""Rendering: how an Example becomes the one text that every model is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jinja2 import TemplateError
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from midblock.base import MidblockError, unknown
from midblock.data.examples import Example

# Some chat templates print today's date, and the token ids would change overnight. This is Llama 3.1's own default.
PINNED_DATE = datetime(2024, 7, 26)
# transformers passes no function on to a template, so the one it defines there is covered by a macro.
PINNED_NOW = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{code}', '{PINNED_DATE.strftime('%' + code)}')" for code in "aAbBdjmyYHIMSp")
    + " }}{% endmacro %}"
)


@dataclass(frozen=True)
class Rendering:
    """Texts, ready to be tokenised.

    Attributes:
        template: the Jinja source that was used, or "raw".
        texts: one per example.
        boundaries: position of the completion's first character in each text; the text's length where there is none.
        special_tokens: whether the tokenizer is to add its own, because the template did not write them.
    """

    template: str
    texts: tuple[str, ...]
    boundaries: tuple[int, ...]
    special_tokens: bool


def render(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, template: str) -> Rendering:
    """Write each example as one text.

    Args:
        template: "raw" (prompt, separator, completion), "chat" (the tokenizer's own) or the path of a `.jinja` file.

    Raises:
        MidblockError: when there is no such template, it fails on an example, or an example has no turns to put in it.
    """
    if template == "raw":
        texts = tuple(example.text for example in examples)
        return Rendering("raw", texts, tuple(_raw_boundary(example) for example in examples), special_tokens=True)
    source = _source(tokenizer, template)
    pairs = [_render_chat(index, example, tokenizer, source) for index, example in enumerate(examples)]
    texts, boundaries = (tuple(part) for part in zip(*pairs, strict=True)) if pairs else ((), ())
    return Rendering(source, texts, boundaries, special_tokens=False)


def _raw_boundary(example: Example) -> int:
    return len(example.text) - len(example.completion)


def _source(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    if template == "chat":
        if not tokenizer.chat_template:
            hint = "use --template raw, or give the path of a .jinja file"
            raise MidblockError("the tokenizer brings no chat template", hint=hint)
        return tokenizer.get_chat_template()
    path = Path(template).expanduser()
    if path.suffix not in (".jinja", ".jinja2", ".j2"):
        raise unknown("template", template, ("raw", "chat", "a path ending in .jinja"))
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MidblockError(f"cannot read the chat template {path}: {reason}") from error


def _render_chat(index: int, example: Example, tokenizer: PreTrainedTokenizerBase, source: str) -> tuple[str, int]:
    """The rendered text, and where the answer begins in it."""
    if not example.messages:
        raise MidblockError(f"sample {index} is plain text, and a chat template wants turns", hint="use --template raw")
    turns = [{"role": turn.role, "content": turn.content} for turn in example.messages]
    before = turns[:-1] if example.completion else turns
    try:
        prompt = _apply(tokenizer, source, before, True)
        text = _apply(tokenizer, source, turns, False) if example.completion else prompt
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        what = f"the chat template fails on sample {index} (turns: {roles}): {error}"
        raise MidblockError(what, hint="use --template raw, or another .jinja file") from error
    if not text.startswith(prompt):
        what = f"sample {index}: the chat template writes the prompt differently once the answer follows"
        raise MidblockError(what, hint="so where the answer begins is unknown; use --template raw")
    return text, len(prompt)


def _apply(tokenizer: PreTrainedTokenizerBase, source: str, turns: list[dict[str, str]], open_end: bool) -> str:
    text = tokenizer.apply_chat_template(
        turns,
        chat_template=PINNED_NOW + source if "strftime_now" in source else source,
        add_generation_prompt=open_end,
        tokenize=False,
        date_string=PINNED_DATE.strftime("%d %b %Y"),
    )
    return str(text)
