"""Names of folders, models and data: whatever a file system takes, and what it does not."""

import shutil
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from .kind import Kind, cases_of
from .nasty import Spoil

CPU = ("--device", "cpu")
PROBE = ("probe", "start", "sft", "--data", "NAME", "--num-samples", "4", *CPU, "-o", "OUT")
NAMES = {
    "base": "base", "the rounded base": "base, rounded", "a dash": "-rf", "dots": "...", "a space": " ",
    "a colon": "a:b",
    "an at": "a@b", "auto": "auto:x", "builtin": "builtin:x", "a formula": "=1+1", "a formula of text": "@SUM(A1)",
    "control characters": "a\x1b[31m\x07\rb", "a new line": "a\nb", "a lone surrogate": "a\udcff", "markup": "<b>&'\"",
    "a template": "{{ 7 }}", "a glob": "[a-z]*?", "a variable": "$HOME", "nobody's home": "~nosuchuser",
    "letters from right": "\u202eabc", "no width": "\u200b", "255 bytes": "n" * 255, "256 bytes": "n" * 256,
    "5,000 letters": "n" * 5000, "a zero byte": "a\0b", "a percent": "%s%n", "a comma": "a, b", "a hash": "#",
    "quotes": "'\"`",
    "NA": "NA", "a number": "3", "nothing": "", "a backslash": "a\\b", "a suffix": "sft.gguf", "a table": "layers.csv",
}  # fmt: skip


def ways(document: Any) -> st.SearchStrategy[Spoil]:
    return st.builds(Spoil, st.just("name"), st.just(()), st.sampled_from(list(NAMES)))


def lay(file: Path, whole: Any, spoil: Spoil) -> None:
    """Move what is named to its name, where a file system takes it; an empty folder's name is only asked for."""
    try:
        source, suffix = SOURCES[whole]
        target = file.parent / (NAMES[spoil.what] + suffix)
        if source and not target.exists():
            copy = shutil.copytree if whole == "folder" else shutil.copy2
            copy(file.parent / source, target)
    except (OSError, ValueError):
        pass


SOURCES = {"folder": ("sft", ""), "file": ("sums.jsonl", ""), "jsonl": ("sums.jsonl", ".jsonl"), "nothing": ("", "")}
FAILED = ((0, Spoil("name", (), "a lone surrogate")),)


def kind_of(what: str, commands: tuple[tuple[str, ...], ...], cases: int, read: str, whole: str) -> Kind:
    return Kind(
        f"names of {what}", "named", commands, ("start", "sft", "sums.jsonl"), cases, lambda file: read, ways, lay,
        meant=lambda spoil: True, kept=FAILED,
        words=lambda spoil: whole if spoil is None else NAMES[spoil.what] + SOURCES[read][1],
    )  # fmt: skip


KINDS = [
    kind_of(
        "models",
        (
            ("analyze", "start", "NAME", "--weights-only", *CPU, "-o", "OUT"),
            ("merge", "start", "NAME", "--alphas", "0,0.5,1", "-o", "OUT"),
            ("probe", "start", "NAME", "--data", "sums.jsonl", "--num-samples", "4", *CPU, "-o", "OUT"),
        ),
        5, "folder", "sft",
    ),
    kind_of("data", (PROBE,), 5, "file", "sums.jsonl"),
    kind_of("data files", (PROBE,), 5, "jsonl", "sums.jsonl"),
    kind_of("output folders", (("merge", "start", "sft", "--alphas", "0,0.5,1", "-o", "NAME"),), 6, "nothing", "out"),
]  # fmt: skip

test = cases_of(KINDS)
