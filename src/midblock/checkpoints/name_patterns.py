"""Patterns of module names in adapter_config.json: matched only once it is known that matching comes to an end.

PEFT takes `rank_pattern`, `target_modules` and others as regular expressions, and Python's may take longer than the
world lasts: `(a+)+$`. Names, and patterns with a few repetitions side by side, are quick whatever they are matched
with. All others are tried on the very names in a process of their own, for some seconds; what is not through by then
is refused, before PEFT or anything here matches it. Cost: nothing for most adapters; else some 30 ms.
Source: PEFT's `get_pattern_key`, `check_target_module_exists`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from midblock.base import MidblockError
from midblock.base.json_file import shown

SECONDS = 6.0  # for all names and patterns together
LONGEST = 50_000  # letters of one pattern; one that names every module of a large model has a tenth of it
MOST = 10_000  # patterns, which PEFT tries one after the other for every module
LONGEST_NAME = 200  # letters of a module's name that quick patterns are quick on
FEW = 2  # repetitions: each makes the steps of a match a name's length times as many
MANY = 100_000  # matches of quick ones that together still are

_ASIDE = re.compile(r"\\.|\[\^?\]?[^\]]*\]|\(\?[:P]", re.DOTALL)  # escapes, classes of letters, plain groups
_REPEATED_GROUP = re.compile(r"\)\s*[*+?{]")
_REPETITION = re.compile(r"[*+?{]")
_LOOKS_BACK = re.compile(r"\\[1-9]|\(\?[^:P]|\(\?P[^<]")  # what a name's length does not bound the steps of

_TRY = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for number, (how, text) in enumerate(patterns):
    print(number, flush=True)
    match = getattr(re.compile(text), how)
    for name in names:
        match(name)
print("through")
"""


@dataclass(frozen=True)
class NamePattern:
    """A regular expression of module names.

    Attributes:
        key: the entry of adapter_config.json that it stands in.
        text: as it stands there.
        how: the method of `re` that PEFT calls.
        whole: what PEFT makes of it.
    """

    key: str
    text: str
    how: str
    whole: str

    @property
    def quick(self) -> bool:
        """Whether it can be seen that it is through quickly with any name of ordinary length."""
        if _LOOKS_BACK.search(self.text):
            return False
        plain = _ASIDE.sub(lambda found: "(" if found[0][0] == "(" else "_", self.text)
        return not _REPEATED_GROUP.search(plain) and len(_REPETITION.findall(plain)) <= FEW


# what PEFT puts around a pattern, by the entry that it stands in: a table's keys, a text alone, or each text of a list
_KEYS: Mapping[str, Callable[[str], str]] = {
    "rank_pattern": lambda text: rf"(.*\.)?({text})$",
    "alpha_pattern": lambda text: rf"(.*\.)?({text})$",
}
_TEXTS = ("target_modules", "exclude_modules", "feedforward_modules")
_LISTS: Mapping[str, Callable[[str], str]] = {
    "modules_to_save": lambda text: rf"(^|.*\.){text}($|\..*)",
    "layers_pattern": lambda text: rf"(?:^|.*?\.){text}\.(?P<idx>\d+)\.",
}


def patterns_of(config: Mapping[str, Any], file: Path) -> tuple[NamePattern, ...]:
    """The patterns in an adapter_config.json whose types are right.

    Raises:
        MidblockError: one is no regular expression, too long, or one of too many; it is named.
    """
    found = tuple(_found(config))
    if len(found) > MOST:
        raise MidblockError(f"{file} has {len(found):,} patterns of module names, more than {MOST:,}")
    for each in found:
        if len(each.text) > LONGEST:
            what = f"{file}: a pattern in {each.key} has {len(each.text):,} letters, more than {LONGEST:,}"
            raise MidblockError(f"{what}: {shown(each.text)}")
        try:
            re.compile(each.whole)
        except (re.error, RecursionError, OverflowError) as error:
            what = f"{file}: {shown(each.text)} in {each.key} is no regular expression: {error}"
            raise MidblockError(what, hint="as PEFT reads it; a dot or bracket that means itself needs \\") from error
    return found


def check_quick(patterns: Iterable[NamePattern], names: Iterable[str], folder: Path) -> None:
    """Do nothing if all patterns can be matched with all names in reasonable time.

    Args:
        patterns: an adapter's.
        names: of the modules that they will be matched with.
        folder: the adapter's, for messages.

    Raises:
        MidblockError: one takes too long; it is named.
    """
    patterns, names = tuple(patterns), tuple(dict.fromkeys(names))
    ordinary = len(patterns) * len(names) <= MANY and all(len(name) <= LONGEST_NAME for name in names)
    slow = tuple(each for each in patterns if not (ordinary and each.quick))
    if slow and (stuck := _stuck_at(slow, names)) is not None:
        what = f"{folder}: the pattern {shown(stuck.text)} in {stuck.key} takes more than {SECONDS:.0f} s to match"
        raise MidblockError(what, hint="PEFT would hang on it: repetitions within repetitions take for ever")


def _found(config: Mapping[str, Any]) -> Iterable[NamePattern]:
    for key, around in _KEYS.items():
        yield from (NamePattern(key, text, "match", around(text)) for text in config.get(key) or {})
    for key in _TEXTS:
        if isinstance(text := config.get(key), str):
            yield NamePattern(key, text, "fullmatch", text)
    for key, around in _LISTS.items():
        texts = config.get(key) or ()
        for text in (texts,) if isinstance(texts, str) else texts:
            yield NamePattern(key, text, "match", around(text))


@lru_cache(maxsize=8)
def _stuck_at(patterns: tuple[NamePattern, ...], names: tuple[str, ...]) -> NamePattern | None:
    """The pattern that another process did not get through with; None if it got through with all."""
    asked = json.dumps([[(each.how, each.whole) for each in patterns], names])
    command = [sys.executable, "-I", "-S", "-c", _TRY]
    try:
        done = subprocess.run(command, input=asked.encode(), capture_output=True, timeout=SECONDS, check=False)
        heard = done.stdout
    except subprocess.TimeoutExpired as expired:
        heard = expired.stdout or b""
    lines = heard.decode().split()
    if lines[-1:] == ["through"]:
        return None
    return patterns[int(lines[-1])] if lines else patterns[0]
