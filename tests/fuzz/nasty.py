"""Values that no file should hold, by name, and the ways to spoil a whole document with one of them at a random place.

A value is a JSON text, so that it may be what Python refuses to write: a number of 5,000 digits, brackets without end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

NASTY = {
    "null": "null",
    "true": "true",
    "zero": "0",
    "minus one": "-1",
    "a half": "0.5",
    "ten million": "10000000",
    "10^12": "1000000000000",
    "5,000 digits": "9" * 5000,
    "minus 5,000 digits": "-" + "9" * 5000,
    "1e308": "1e308",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "no text": '""',
    "a word": '"nonsense"',
    "a number as text": '"3"',
    "100,000 letters": f'"{"a" * 100_000}"',
    "a name of 300": f'"{"n" * 300}"',
    "control characters": r'"\u001b]0;x\u0007\u001b[31m\r\n\u0000\u009b2J"',
    "a lone surrogate": r'"\ud800"',
    "markup": r'"</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"',
    "a formula": '"=1+1"',
    "a template": '"{{ 7 * 7 }}{% for i in range(10**9) %}{% endfor %}"',
    "code": r'"\"\"\"); import os; os.abort() #"',
    "parents": '"../../.."',
    "nobody's home": '"~nosuchuser/x"',
    "a slow pattern": '"(a+)+(b+)+(.*a){20}$"',
    "an open bracket": '"(["',
    "[]": "[]",
    "{}": "{}",
    "a list in a list": "[[1, [null]], {}]",
    "a mapping in a mapping": '{"a": {"b": [null]}}',
    "100,000 numbers": "[" + "1," * 99_999 + "1]",
    "100,000 brackets": "[" * 100_000 + "]" * 100_000,
    "100,000 braces": '{"a":' * 100_000 + "1" + "}" * 100_000,
}
BREAKAGES = ("nothing", "half", "no JSON", "a list", "a number", "UTF-16", "a byte order mark", "not UTF-8", "zeros")
MARK = "\N{SNOWMAN}spoiled\N{SNOWMAN}"

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Spoil:
    """One way to spoil a document; its repr is what a kept example is written as.

    Attributes:
        how: "set", "drop", "rename", "repeat" or "wrap" for a place of it; "file" for the file as a whole.
        where: the place; () the document itself.
        what: a name of `NASTY`, for "file" one of `BREAKAGES`.
    """

    how: str
    where: Path = ()
    what: str = ""

    def __str__(self) -> str:
        place = "".join(f"[{key!r}]" for key in self.where)
        return " ".join(part for part in (self.how, place, self.what) if part)


def places(document: Any, under: Path = ()) -> Iterator[Path]:
    """Every place of a document, itself first."""
    yield under
    if isinstance(document, dict | list):
        for key, value in document.items() if isinstance(document, dict) else enumerate(document):
            yield from places(value, (*under, key))


def spoils(document: Any, values: tuple[str, ...] = tuple(NASTY)) -> st.SearchStrategy[Spoil]:
    """Ways to spoil the document: mostly a nasty value at a random place."""
    anywhere = _anywhere(document)
    value = st.sampled_from(values)
    set_one = st.builds(Spoil, st.just("set"), anywhere, value)
    others = st.builds(Spoil, st.sampled_from(("drop", "rename", "repeat", "wrap")), anywhere, value)
    return st.one_of(set_one, set_one, set_one, others, st.builds(Spoil, st.just("file"), st.just(()), breakage()))


def _anywhere(document: Any) -> st.SearchStrategy[Path]:
    """A place, of each depth as often, but the document itself seldom: lists are long and what is deep is many."""
    by_depth: dict[int, list[Path]] = {}
    for place in places(document):
        by_depth.setdefault(len(place), []).append(place)
    inside = [st.sampled_from(by_depth[depth]) for depth in sorted(by_depth, key=lambda depth: depth or 99)]
    return st.one_of(*inside[:-1], *inside) if len(inside) > 1 else st.one_of(*inside)


def breakage() -> st.SearchStrategy[str]:
    return st.sampled_from(BREAKAGES)


def spoiled(document: Any, spoil: Spoil) -> bytes:
    """The document's file, spoiled."""
    if spoil.how == "file":
        return broken(json.dumps(document).encode(), spoil.what)
    text = json.dumps(_changed(document, spoil.where, spoil), ensure_ascii=True)
    return text.replace(json.dumps(MARK), NASTY[spoil.what] if spoil.what else "null").encode()


def broken(whole: bytes, breakage: str) -> bytes:
    """A file that is not what it was, whatever it held."""
    text = whole.decode(errors="replace")
    return {
        "nothing": b"",
        "half": whole[: len(whole) // 2],
        "no JSON": b"\x1b[31m: - {nonsense\n",
        "a list": b"[1, 2]",
        "a number": b"3",
        "UTF-16": text.encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf" + whole,
        "not UTF-8": whole.replace(b"a", b"\xff\xfe"),
        "zeros": bytes(len(whole)),
    }[breakage]


def _changed(document: Any, where: Path, spoil: Spoil) -> Any:
    if where:
        key, *deeper = where
        copy = dict(document) if isinstance(document, dict) else list(document)
        if deeper:
            copy[key] = _changed(copy[key], tuple(deeper), spoil)
        elif spoil.how == "drop":
            del copy[key]
        elif spoil.how == "rename" and isinstance(copy, dict):
            copy = {MARK if each == key else each: value for each, value in copy.items()}
        else:
            copy[key] = _changed(copy[key], (), spoil)
        return copy
    return {"repeat": [document, document], "wrap": {MARK: document}}.get(spoil.how, MARK)
