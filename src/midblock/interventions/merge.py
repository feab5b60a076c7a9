"""`merge`: a base and a model tuned from it, mixed block by block into a new checkpoint, tensor by tensor."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from glob import escape
from pathlib import Path
from typing import Any

import torch

from midblock.base import LayerTable, MidblockError, Progress, RunFolder, Silent, write_json
from midblock.base.files import size_text, write_failure
from midblock.checkpoints import Pair, Variant, load_pair
from midblock.interventions.alphas import Alphas, read_numbers, read_overrides
from midblock.interventions.merge_files import write_small_files
from midblock.interventions.merge_settings import MergeSettings
from midblock.interventions.merge_summary import rows_of, summary_of
from midblock.interventions.merge_weights import Weights
from midblock.interventions.mergekit import mergekit_name, recipe, rules
from midblock.interventions.parents import Parent, checkpoint_of

VERB = "merge"
RECIPE = "mergekit.yaml"


def merge(
    base: str | Path,
    tuned: str | Path,
    alphas: str | float | Sequence[float],
    *,
    output_dir: Path | str,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    command: str | None = None,
    **options: Any,
) -> Path:
    """Write W = (1 − α) W_base + α W_tuned, with an α for each block, as a checkpoint that transformers loads.

    Computed in float64 and rounded at the end; where α is 0 or 1 the parent's bytes are copied. Few tensors are held.
    The folder is also the run folder; it appears under its name when it is whole.

    Args:
        base, tuned: model references of one architecture; `tuned` may be an adapter.
        alphas: α: one number, one a block, or fewer, which are spread over the blocks; as numbers or a text `0,0.5,1`.
        output_dir: the folder to write.
        resume: leave a finished merge of the same settings as it is.
        overwrite: replace what an earlier run left there.
        progress: told how far it got.
        command: how it was called, recorded.
        **options: fields of `MergeSettings`.

    Returns:
        The folder.

    Raises:
        MidblockError: anything the user can mend; nothing new stands at `output_dir` then.
    """
    settings, numbers = MergeSettings.of(options), read_numbers(alphas)
    consent = {"allow_pickle": settings.allow_pickle, "trust_remote_code": settings.trust_remote_code}
    pair = load_pair(str(base), str(tuned), **consent)
    config = {
        "base": str(base),
        "tuned": str(tuned),
        "alphas": ",".join(f"{number:g}" if float(f"{number:g}") == number else repr(number) for number in numbers),
        **asdict(settings),
    }
    folder, inputs = Path(output_dir).expanduser(), {f"the weights of {each.name}": each.files() for each in pair}
    earlier = RunFolder.check(
        folder, VERB, config, resume=resume, overwrite=overwrite, inputs=inputs, sources=pair.places
    )
    if earlier is not None and earlier.get("status") == "done":
        return folder
    with _under_another_name(folder) as place_to_write:
        run = RunFolder.open(place_to_write, VERB, config, inputs=inputs)
        run.record["command"] = command or "midblock.merge(…)"
        _Merge(pair, settings, numbers, folder.resolve().name, run).write(progress or Silent())
        run.finish()
    return folder


class _Merge:
    """One merge under way."""

    def __init__(
        self, pair: Pair, settings: MergeSettings, numbers: tuple[float, ...], name: str, run: RunFolder
    ) -> None:
        self.pair, self.settings, self.numbers, self.name, self.run = pair, settings, numbers, name, run
        self.base, self.tuned = pair.base, pair.tuned[0]

    def write(self, progress: Progress) -> None:
        """Write the checkpoint, then tables and summary."""
        base, tuned = (Parent.of(variant, self.pair.blocks) for variant in (self.base, self.tuned))
        with base.reader, tuned.reader:
            tied = base.tied and tuned.tied
            alphas = self.settings.alphas(self.numbers, self.pair.blocks, tied=tied)
            alphas.check_overrides(base.reader.names)
            weights = Weights.plan(base, tuned, alphas, self._dtype())
            self.run.record["models"] = [self._described(variant) for variant in self.pair]
            self._check_space(weights)
            with self.run.phase("weights"):
                weights.write(self.run.path, progress.phase("merging", weights.size))
            self.run.record["notes"] = [*self._notes(alphas, tied), *self._files(base, tied)]
            self._write_tables(weights, alphas)
            self._write_recipe(weights, alphas)

    def _dtype(self) -> torch.dtype | None:
        return None if self.settings.dtype == "auto" else getattr(torch, self.settings.dtype)

    def _files(self, base: Parent, tied: bool) -> list[str]:
        changes: dict[str, Any] = {}
        if self._dtype() is not None:
            changes["dtype"] = self.settings.dtype
        if base.tied and not tied:
            changes["tie_word_embeddings"] = False
        notes = write_small_files(checkpoint_of(self.base), checkpoint_of(self.tuned), self.run.path, changes)
        if base.tied and not tied:
            notes.append(f"{self.tuned.name} has a head of its own: the merge has one too, apart from the embedding.")
        return notes

    def _notes(self, alphas: Alphas, tied: bool) -> list[str]:
        every = [*alphas.blocks, alphas.embedding, alphas.head, *(a for row in alphas.overrides.values() for a in row)]
        notes = self.pair.notes()
        if min(every) < 0 or max(every) > 1:
            notes.append(f"Alphas from {min(every):g} to {max(every):g}: outside 0 to 1 the merge extrapolates.")
        if tied and alphas.head != alphas.embedding:
            notes.append(f"The head is tied to the embedding, one tensor: both take the alpha {alphas.embedding:g}.")
        return notes

    def _described(self, variant: Variant) -> dict[str, Any]:
        if self.settings.weight_hashes:
            return variant.as_record()
        role = "base" if variant is self.base else "tuned"
        return {"name": variant.name, "role": role, "reference": variant.reference}

    def _check_space(self, weights: Weights) -> None:
        free = shutil.disk_usage(self.run.path).free
        if free < weights.size:
            raise MidblockError(f"no space left for {self.name}: {size_text(weights.size)} are needed")

    def _write_tables(self, weights: Weights, alphas: Alphas) -> None:
        LayerTable.from_rows(rows_of(weights, alphas, self.name)).write(self.run.path)
        summary = summary_of(weights, alphas, self.base.name, self.tuned.name)
        write_json(self.run.path / "summary.json", summary)

    def _write_recipe(self, weights: Weights, alphas: Alphas) -> None:
        given: dict[str | None, tuple[float, ...]] = {}
        if self.settings.interpolation == "gradient":
            given[None] = self.numbers
            given.update(read_overrides(self.settings.module_alphas))
        items = [item for item in weights if item.tuned_name is not None]
        heads = {item.name: item.alpha for item in items if item.name == weights.base.head}
        found = rules(alphas, [item.name for item in items], given, heads)
        written = Counter(item.dtype for item in items).most_common(1)[0][0]
        ours, theirs = (mergekit_name(checkpoint_of(each)) for each in (self.base, self.tuned))
        text = recipe(found, ours, theirs, written)
        (self.run.path / RECIPE).write_text(text, encoding="utf-8")


@contextmanager
def _under_another_name(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder`; on leaving without an error it takes that name, and what stood there goes.

    Raises:
        MidblockError: the disk is full or the place cannot be written.
    """
    folder = folder.resolve()
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        _clear_away(folder)
        stood = folder.exists()
        (scratch / "made").mkdir(parents=True)
        try:
            yield scratch / "made"
            if folder.exists() and not stood:
                raise MidblockError(f"{folder} was written by another run meanwhile", hint="choose another name")
            if folder.exists():
                folder.rename(scratch / "before")
            try:
                (scratch / "made").rename(folder)
            except OSError:
                with suppress(OSError):
                    (scratch / "before").rename(folder)
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise write_failure(folder, error) from error


def _clear_away(folder: Path) -> None:
    """Remove what killed merges left beside `folder`; one killed between its two renames has what stood there."""
    for scratch in folder.parent.glob(f".{escape(folder.name)}.*.partial"):
        if _lives(scratch.name.removeprefix(f".{folder.name}.").removesuffix(".partial")):
            continue
        if (scratch / "before").exists() and not folder.exists():
            (scratch / "before").rename(folder)
        shutil.rmtree(scratch, ignore_errors=True)


def _lives(process: str) -> bool:
    """Whether a process with this number runs; its own number is from an earlier life. Unsure on Windows: yes."""
    if not process.isdigit() or sys.platform == "win32":
        return True
    if int(process) == os.getpid():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
