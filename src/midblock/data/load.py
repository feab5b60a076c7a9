"""load_dataset: from a dataset reference to the samples a run works on."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from midblock.base import MidblockError, generator, nearest, unknown, user_path
from midblock.base.options import LARGEST, told_number
from midblock.data.derived import Derived, source_of
from midblock.data.examples import Example, ExampleSet, hash_examples, left_out
from midblock.data.files import READERS, read_file
from midblock.data.hub import HUB_SETS, HubSet, read_hub
from midblock.data.layouts import LAYOUTS, detect_layout, read_examples, try_examples, unread_note
from midblock.data.procedural import BUILTIN_SETS, make_rows
from midblock.data.records import Record, Records

KINDS = (
    "a .jsonl, .json or .parquet file, ORG/NAME or a short name like gsm8k of the hub, or builtin:NAME; before it "
    "reworded: or a behaviour like style:; docs/references.md lists them"
)
PART = 1000  # rows looked at together, where every row must be
FILE_ENDINGS = (*READERS, ".csv", ".tsv", ".txt", ".arrow", ".gz", ".zst")  # meant as files even where none is


def load_dataset(
    reference: str | Path,
    *,
    split: str | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    skip: int = 0,
    at_most: bool = False,
) -> ExampleSet:
    """Load a dataset and draw samples from it.

    Args:
        reference: `builtin:gsm_symbolic` or another builtin set; a short name of `HUB_SETS`, or `org/name`, either with
            `@config`; a local `.jsonl`, `.json` or `.parquet` file, or a folder laid out like a hub dataset. Before any
            of them `fixed_response:` or another behaviour, `reworded:`, or both in this order.
        split: which part; by default the one `HUB_SETS` names, "test" of a builtin set or a behaviour, "train" of any
            other.
        num_samples: how many samples; None for all there are, or 1000 of a builtin set, which never ends.
        seed: decides which samples: a seeded shuffle, then the first `num_samples`, given in the dataset's order.
        skip: how many of the shuffled samples to pass over first, so that two draws with one seed share none.
        at_most: take all there are where those are fewer than `num_samples`.

    Returns:
        The samples, with the layout that was recognised and a hash of their content.

    Raises:
        MidblockError: when the reference, its columns or a row cannot be read, or holds fewer samples than asked for.
    """
    if (num_samples is not None and num_samples < 1) or skip < 0:
        count = "all" if num_samples is None else told_number(num_samples)
        what = f"cannot draw {count} samples after skipping {told_number(skip)}"
        raise MidblockError(what, hint="ask for 1 or more")
    if num_samples is not None and skip + num_samples > LARGEST:
        raise MidblockError(f"{told_number(num_samples)} samples are more than any dataset has")
    reference = str(reference)
    if (derived := Derived.parse(reference)) is not None:
        return derived.draw(load_dataset, split=split, num_samples=num_samples, seed=seed, skip=skip, at_most=at_most)
    bad: dict[int, MidblockError] = {}
    if reference.startswith("builtin:"):
        name = reference.removeprefix("builtin:")
        rows = make_rows(name, split=split, num_samples=num_samples, seed=seed, skip=skip)
        layout = rows.layout or detect_layout(rows)
        examples = read_examples(rows, layout, range(rows.count))
    else:
        rows = _open(reference, split)
        layout = rows.layout or detect_layout(rows)
        examples, bad = _sample(rows, layout, num_samples, seed, skip, at_most)
    reasons = {row + 1: error.what.removeprefix(f"{rows.name}, row {row + 1}: ") for row, error in bad.items()}
    found = reference, rows.split, layout, examples, hash_examples(examples)
    return ExampleSet(*found, left_out(reasons, "row {}"), (*rows.notes, *unread_note(rows, layout)))


def local_places(data: str | ExampleSet) -> list[Path]:
    """The file or folder that a dataset is read from, if it is a local one."""
    try:
        reference = source_of(data if isinstance(data, str) else data.reference)
        if reference.startswith("builtin:") or reference.partition("@")[0] in HUB_SETS:
            return []
        path = user_path(reference)
    except MidblockError:  # what is in memory may be called anything
        return []
    return [path] if path.exists() else []


def _open(reference: str, split: str | None) -> Records:
    name, _, config = reference.partition("@")
    if not name.strip():
        raise MidblockError("the dataset reference is empty", hint="give builtin:gsm_symbolic, a hub id or a file")
    if name in HUB_SETS:
        source = HUB_SETS[name]
        return read_hub(reference, replace(source, config=config or source.config, split=split or source.split))
    path = user_path(reference)
    if path.is_dir():
        return read_hub(reference, HubSet(str(path), None, split or "train"))
    if path.exists() or path.suffix.lower() in FILE_ENDINGS or reference.startswith(("/", ".", "~")):
        if split is not None:
            raise MidblockError(f"{reference} is one file and has no split {split!r}", hint="leave the split out")
        return read_file(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return read_hub(reference, HubSet(name, config or None, split or "train"))
    known = [*HUB_SETS, *(f"builtin:{name}" for name in BUILTIN_SETS)]
    if nearest(reference, known):
        raise unknown("dataset", reference, known)
    raise MidblockError(f"unknown dataset {reference!r}", hint=KINDS)


def _sample(
    rows: Records, layout: str, num_samples: int | None, seed: int, skip: int, at_most: bool
) -> tuple[tuple[Example, ...], dict[int, MidblockError]]:
    """The samples in the dataset's order, and the rows met on the way that cannot be read: the next ones stand in."""
    order: Sequence[int] | np.ndarray = _usable(rows)
    if num_samples is not None or skip:
        shuffled = generator(seed, "data", "sample").permutation(len(order))
        order = shuffled if isinstance(order, range) else np.asarray(order)[shuffled]
    good: dict[int, Example] = {}
    bad: dict[int, MidblockError] = {}
    wanted, at = len(order) if num_samples is None else skip + num_samples, 0
    while len(good) < wanted and at < len(order):
        chosen = [int(row) for row in order[at : at + wanted - len(good)]]
        for row, found in zip(chosen, try_examples(rows, layout, chosen), strict=True):
            if isinstance(found, MidblockError):
                bad[row] = found
            else:
                good[row] = found
        at += len(chosen)
        if not good:
            break  # nothing of what was drawn can be read
    _check_enough(rows, good, bad, None if at_most else num_samples, skip)
    return tuple(good[row] for row in sorted(list(good)[skip:])), bad


def _check_enough(
    rows: Records, good: Mapping[int, Example], bad: Mapping[int, MidblockError], num_samples: int | None, skip: int
) -> None:
    if bad and len(bad) >= len(good):  # no slip here and there: these columns hold something else
        first = bad[min(bad)]
        raise MidblockError(f"{first.what}; {len(bad)} of {len(good) + len(bad)} rows cannot be read", hint=first.hint)
    if len(good) < skip + (1 if num_samples is None else num_samples):
        after = f" after skipping {skip}" if skip else ""
        asked = f"{num_samples} samples{after}" if num_samples else f"samples{after}"
        left = len(good) - skip
        hint = f"--num-samples {left}" if num_samples and left > 0 else None
        unread = f", and {len(bad)} rows that cannot be read" if bad else ""
        raise MidblockError(f"{rows.name} holds {len(good)} samples{unread}; {asked} were asked for", hint=hint)


def _usable(rows: Records) -> Sequence[int]:
    keep = LAYOUTS[rows.layout].keep if rows.layout else None
    if keep is None:
        return range(rows.count)
    parts = (range(start, min(start + PART, rows.count)) for start in range(0, rows.count, PART))
    found = (zip(part, rows.take(part, LAYOUTS[rows.layout or ""].reads), strict=True) for part in parts)
    return [index for part in found for index, row in part if _counts(keep, row)]


def _counts(keep: Callable[[Record], bool], row: Record) -> bool:
    try:
        return keep(row)
    except MidblockError:
        return True  # reading it says what is wrong
