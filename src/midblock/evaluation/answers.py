"""ANSWERS: how the answer is read out of what a model wrote."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from midblock.base import MidblockError
from midblock.data import Example

MARK = "####"
# A minus sign directly behind a word, a digit or a bracket is a subtraction or a dash, no sign.
NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]])[-−][$€£]?|[$€£][-−]?)?"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<!\w)\.[0-9]+)"
)
BOX = re.compile(r"\\(?:f?boxed|fbox)\s*\{")
TYPESETTING = re.compile(r"\\[$%!,;: ]")
WRAPPED = frozenset({"marked", "boxed"})  # readers of what stands in something, which right answers may lack


def gsm8k(text: str) -> str | None:
    """The number behind the first ####, on its line; without ####, the last number anywhere."""
    return marked(text) if MARK in text else last_number(text)


def marked(text: str) -> str | None:
    """The number behind the first ####, on its line."""
    _, mark, behind = text.partition(MARK)
    found = NUMBER.search(behind.strip().partition("\n")[0]) if mark else None
    return _normal(found) if found else None


def boxed(text: str) -> str | None:
    """What the last whole \\boxed{} holds, braces inside it included; a number in one spelling."""
    for start in reversed([found.end() for found in BOX.finditer(text)]):
        depth = 1
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0) if text[place - 1] != "\\" else 0
            if not depth:
                return plain(text[start:place])
    return None


def plain(text: str) -> str | None:
    """A text alone: a number in one spelling, with or without currency, percent and LaTeX's spaces; else itself."""
    alone = TYPESETTING.sub("", text).replace("{,}", ",").strip().removesuffix("%").removesuffix(".")
    found = NUMBER.fullmatch(alone.replace("$", ""))
    return _normal(found) if found else exact(text)


def last_number(text: str) -> str | None:
    """The last number, in one spelling: no thousands commas, currency, leading or trailing zeros."""
    found = list(NUMBER.finditer(text))
    return _normal(found[-1]) if found else None


def exact(text: str) -> str | None:
    """All of the text, but for whitespace around it."""
    return text.strip() or None


def first_line(text: str) -> str | None:
    """The first line that is not blank."""
    return exact(text.strip().partition("\n")[0])


ANSWERS: Mapping[str, Callable[[str], str | None]] = {
    "gsm8k": gsm8k,
    "marked": marked,
    "boxed": boxed,
    "last_number": last_number,
    "exact": exact,
    "first_line": first_line,
}


def gold_answer(example: Example) -> str:
    """What scoring compares with: the answer that came with the sample, else its completion; empty if it has none."""
    return example.extra.get("answer") or example.completion


def read_gold(reader: str, example: Example) -> str | None:
    """The right answer as a reader gives it; one that came without its mark or box is taken as it stands."""
    gold = gold_answer(example)
    found = ANSWERS[reader](gold)
    return plain(gold) if found is None and reader in WRAPPED else found


def choose_strict_reader(examples: Sequence[Example]) -> str:
    """Pick the reader that fits a dataset and takes no number for an answer that is not said to be it.

    `marked` where completions mark their answer with ####, `boxed` where they box it, `first_line` where answers have
    one line, else `exact`.
    """
    if all(MARK in example.completion for example in examples):
        return "marked"
    if all(BOX.search(example.completion) for example in examples):
        return "boxed"
    one_line = all("\n" not in gold_answer(example).strip() for example in examples)
    return "first_line" if one_line else "exact"


def choose_reader(examples: Iterable[Example]) -> str:
    """Pick the reader that fits a dataset.

    `gsm8k` where completions mark their answer with ####, `last_number` where all answers are numbers, `first_line`
    where short answers came with the samples (such as a choice's letter), `exact` otherwise.

    Raises:
        MidblockError: a sample has no answer to compare with.
    """
    samples = list(examples)
    golds = [gold_answer(example).strip() for example in samples]
    if missing := [index for index, gold in enumerate(golds) if not gold]:
        raise MidblockError(
            f"sample {missing[0]} has no answer to compare with", hint="exact match needs answered data"
        )
    if all(MARK in example.completion for example in samples):
        return "gsm8k"
    if all(NUMBER.fullmatch(gold) for gold in golds):
        return "last_number"
    return "first_line" if all(example.extra.get("answer") for example in samples) else "exact"


def _normal(found: re.Match[str]) -> str:
    whole, _, part = found["digits"].replace(",", "").partition(".")
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    number = f"{whole}.{part}" if part else whole
    negative = number != "0" and any(sign in (found["sign"] or "") for sign in "-−")
    return f"-{number}" if negative else number
