"""A file of settings, `--config FILE`."""

import json
import os
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from .kind import Kind, cases_of
from .nasty import NASTY, Spoil, spoiled, spoils

TEXTS = {
    "aliases that grow": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12)
    ) + "data: *m\n",
    "an alias of itself": "data: &a [*a]\n",
    "a merge of itself": "a: &a\n  <<: *a\n",
    "a Python tag": "data: !!python/object/apply:os.abort []\n",
    "a binary": "data: !!binary aGVsbG8=\n",
    "a set": "data: !!set {a, b}\n",
    "a date": "data: 2020-01-01\n",
    "an impossible date": "data: 2020-13-45\n",
    "a time": "num_samples: 2020-01-01 10:00:00\n",
    "an octal number": "num_samples: 010\n",
    "minutes and seconds": "num_samples: 1:30\n",
    "a number with lines": "num_samples: 1_2\n",
    "yes": "weights_only: yes\n",
    "a key twice": "num_samples: 4\nnum_samples: 6\n",
    "a key of a list": "? [a, b]\n: 3\n",
    "a key that is null": "null: 3\n",
    "a number as key": "3: 4\n",
    "nested": "analyze:\n  num_samples: 4\n",
    "two documents": "num_samples: 4\n---\nnum_samples: 6\n",
    "tabs": "data:\n\t- a\n",
    "controls": "data: \x1b[31m\x07\n",
    "a line of a megabyte": "data: " + "a" * 2**20 + "\n",
    "config": "config: other.yaml\n",
    "help": "help: true\n",
    "a dash": "num-samples: 4\n",
    "dots": "where.resume: true\n",
    "hidden": "progress: 3\n",
    "the other hidden": "command: nonsense\n",
}  # fmt: skip
PLACES = ("a folder", "a pipe", "a loop", "gone", "a sparse gigabyte", "zero device")


def ways(document: Any) -> st.SearchStrategy[Spoil]:
    text = st.builds(Spoil, st.just("text"), st.just(()), st.sampled_from(list(TEXTS)))
    place = st.builds(Spoil, st.just("place"), st.just(()), st.sampled_from(PLACES))
    usual = spoils(document)
    return st.one_of(usual, usual, usual, text, place)


def write(file: Path, whole: Any, spoil: Spoil) -> None:
    if spoil.how == "text":
        file.write_text(
            "".join(
                f"{key}: {json.dumps(value)}\n" for key, value in whole.items() if f"{key}:" not in TEXTS[spoil.what]
            )
            + TEXTS[spoil.what]
        )
    elif spoil.how == "place":
        file.unlink()
        {
            "a folder": lambda: file.mkdir(),
            "a pipe": lambda: os.mkfifo(file),
            "a loop": lambda: file.symlink_to(file.name),
            "gone": lambda: None,
            "a sparse gigabyte": lambda: (file.touch(), os.truncate(file, 2**30)),
            "zero device": lambda: file.symlink_to("/dev/zero"),
        }[spoil.what]()
    else:
        file.write_bytes(spoiled(whole, spoil))


def as_given(folder: Path, spoil: Spoil) -> str:
    """What the file said is what the run was made with, whatever else it might have been taken for."""
    if spoil.how != "set" or len(spoil.where) != 1 or not (folder / "config.yaml").exists():
        return ""
    given, kept = json.loads(NASTY[spoil.what]), yaml.safe_load((folder / "config.yaml").read_text())[spoil.where[0]]
    if given is None or (given == kept and type(given) is type(kept)):
        return ""
    if isinstance(kept, str | list) or (
        isinstance(given, int | float | str) and not isinstance(given, bool) and str(given) == str(kept)
    ):
        return ""
    return (
        f"accepted nonsense: {given!r:.50} became {kept!r:.50}" if not (type(kept) is float and kept == given) else ""
    )


FAILED = (
    *((0, Spoil("place", (), what)) for what in ("a pipe", "zero device")),
    *((0, Spoil("text", (), what)) for what in ("an alias of itself", "aliases that grow", "a binary", "a set",
                                                "a line of a megabyte", "an impossible date", "an octal number")),
    (0, Spoil("set", ("tuned", 0), "nobody's home")),
    (0, Spoil("set", ("seeds",), "100,000 braces")),
)  # fmt: skip
KINDS = [Kind(
    "settings of an analysis", "settings.json",
    [("analyze", "--config", "settings.json")],
    ("settings.json", "start", "sft", "sums.jsonl"), 14, ways=ways, kept=FAILED, write=write, also=as_given,
    meant=lambda spoil: True,
)]  # fmt: skip

test = cases_of(KINDS)
