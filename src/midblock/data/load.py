"""load_dataset: from a dataset reference to the samples a run works on."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from midblock.base import MidblockError, generator, unknown
from midblock.data.examples import ExampleSet, hash_examples
from midblock.data.files import READERS, read_file
from midblock.data.hub import HUB_SETS, HubSet, read_hub
from midblock.data.layouts import LAYOUTS, detect_layout, read_examples
from midblock.data.procedural import BUILTIN_SETS, make_rows
from midblock.data.records import Records

FILE_ENDINGS = (*READERS, ".csv", ".tsv", ".txt", ".arrow", ".gz", ".zst")  # meant as files even where none is


def load_dataset(
    reference: str | Path,
    *,
    split: str | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    skip: int = 0,
) -> ExampleSet:
    """Load a dataset and draw samples from it.

    Args:
        reference: `builtin:gsm_symbolic` or `builtin:chain_sum`; a short name of `HUB_SETS`, or `org/name`, either with
            `@config`; a local `.jsonl`, `.json` or `.parquet` file, or a folder laid out like a hub dataset.
        split: which part; by default the one `HUB_SETS` names, "test" of a builtin set, "train" of any other.
        num_samples: how many samples; None for all there are, or 1000 of a builtin set, which never ends.
        seed: decides which samples: a seeded shuffle, then the first `num_samples`, given in the dataset's order.
        skip: how many of the shuffled samples to pass over first, so that two draws with one seed share none.

    Returns:
        The samples, with the layout that was recognised and a hash of their content.

    Raises:
        MidblockError: when the reference, its columns or a row cannot be read, or holds fewer samples than asked for.
    """
    if (num_samples is not None and num_samples < 1) or skip < 0:
        raise MidblockError(f"cannot draw {num_samples} samples after skipping {skip}", hint="ask for 1 or more")
    reference = str(reference)
    if reference.startswith("builtin:"):
        name = reference.removeprefix("builtin:")
        rows = make_rows(name, split=split, num_samples=num_samples, seed=seed, skip=skip)
        chosen: Sequence[int] = range(rows.count)
    else:
        rows = _open(reference, split)
        chosen = _sample(rows, num_samples, seed, skip)
    layout = rows.layout or detect_layout(rows)
    examples = read_examples(rows, layout, chosen)
    return ExampleSet(reference, rows.split, layout, examples, hash_examples(examples))


def local_places(data: str | ExampleSet) -> list[Path]:
    """The file or folder that a dataset is read from, if it is a local one."""
    reference = data if isinstance(data, str) else data.reference
    path = Path(reference).expanduser()
    if reference.startswith("builtin:") or reference.partition("@")[0] in HUB_SETS or not os.path.exists(path):
        return []
    return [path]


def _open(reference: str, split: str | None) -> Records:
    name, _, config = reference.partition("@")
    if not name.strip():
        raise MidblockError("the dataset reference is empty", hint="give builtin:gsm_symbolic, a hub id or a file")
    if name in HUB_SETS:
        source = HUB_SETS[name]
        return read_hub(reference, replace(source, config=config or source.config, split=split or source.split))
    path = Path(reference).expanduser()
    if path.is_dir():
        return read_hub(reference, HubSet(str(path), None, split or "train"))
    if path.exists() or path.suffix.lower() in FILE_ENDINGS or reference.startswith(("/", ".", "~")):
        if split is not None:
            raise MidblockError(f"{reference} is one file and has no split {split!r}", hint="leave the split out")
        return read_file(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return read_hub(reference, HubSet(name, config or None, split or "train"))
    raise unknown("dataset", reference, [*HUB_SETS, *(f"builtin:{name}" for name in BUILTIN_SETS)])


def _sample(rows: Records, num_samples: int | None, seed: int, skip: int) -> list[int]:
    """Choose row positions, ascending."""
    usable = _usable(rows)
    wanted = skip + (1 if num_samples is None else num_samples)
    if wanted > len(usable):
        after = f" after skipping {skip}" if skip else ""
        asked = f"{num_samples} samples{after}" if num_samples else f"samples{after}"
        left = len(usable) - skip
        hint = f"--num-samples {left}" if num_samples and left > 0 else None
        raise MidblockError(f"{rows.name} holds {len(usable)} samples; {asked} were asked for", hint=hint)
    if num_samples is None and skip == 0:
        return list(usable)
    order = generator(seed, "data", "sample").permutation(len(usable))
    end = None if num_samples is None else skip + num_samples
    return sorted(usable[position] for position in order[skip:end].tolist())


def _usable(rows: Records) -> Sequence[int]:
    keep = LAYOUTS[rows.layout].keep if rows.layout else None
    if keep is None:
        return range(rows.count)
    return [index for index, row in enumerate(rows.take(range(rows.count))) if keep(row)]
