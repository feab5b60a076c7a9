"""Write a merge: the checkpoint into the open run folder, and what is recorded, told and drawn of it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from midblock.base import MidblockError
from midblock.base.files import size_text
from midblock.checkpoints import EffectiveTensors, Pair, Variant, projection_on_disk
from midblock.interventions.merge.alphas import Alphas, read_overrides
from midblock.interventions.merge.files import write_small_files
from midblock.interventions.merge.mergekit import mergekit_name, recipe, rules
from midblock.interventions.merge.parents import checkpoint_of, open_parent, parent_notes
from midblock.interventions.merge.settings import MergeSettings
from midblock.interventions.merge.summary import rows_of, summary_of
from midblock.interventions.merge.weights import Weights
from midblock.runs.run import Bench, Outcome

RECIPE = "mergekit.yaml"
PHASE = "weights"
NOTED_LOSS = 0.1  # of a change


@dataclass(frozen=True)
class Merging:
    """One merge.

    Attributes:
        numbers: the alphas as they were given.
        name: what tables call the merge.
    """

    pair: Pair
    settings: MergeSettings
    numbers: tuple[float, ...]
    name: str

    @property
    def base(self) -> Variant:
        return self.pair.base

    @property
    def tuned(self) -> Variant:
        return self.pair.tuned[0]

    def write(self, bench: Bench) -> Outcome:
        """Write the checkpoint.

        Raises:
            MidblockError: alphas that do not fit the model, parents that do not fit each other, or too little space.
        """
        folder = bench.folder
        with open_parent(self.base) as base, open_parent(self.tuned) as tuned:
            tied = base.tied and tuned.tied
            alphas = self.settings.alphas(self.numbers, self.pair.blocks, tied=tied)
            loaded = (name for name, (piece, *_) in base.on_disk.items() if not piece.unread)
            alphas.check_overrides(projection_on_disk(base, name) for name in loaded)
            weights = Weights.plan(base, tuned, alphas, self._dtype())
            models = [self._described(variant) for variant in self.pair]
            self._check_space(folder, weights)
            with bench.phase(PHASE):
                weights.write(folder, bench.progress.phase("merging", weights.size))
            bench.notes += [*parent_notes(base, tuned), *self._notes(alphas, tied), *_loss_note(weights)]
            bench.notes += [*self._write_small_files(folder, base, tied)]
            return Outcome(
                list(rows_of(weights, alphas, self.name)),
                summary_of(weights, alphas, self.base.name, self.tuned.name),
                record={"models": models},
                files={} if self._carried else {RECIPE: _writer(self._recipe(weights, alphas))},
                phase=PHASE,
            )

    @property
    def _carried(self) -> bool:
        """Whether a parent has a carrier, which mergekit cannot read."""
        return any(checkpoint_of(variant).carriers for variant in self.pair)

    def _dtype(self) -> torch.dtype | None:
        return None if self.settings.dtype == "auto" else getattr(torch, self.settings.dtype)

    def _write_small_files(self, folder: Path, base: EffectiveTensors, tied: bool) -> list[str]:
        """Config, tokenizer and what else belongs to a checkpoint; what a reader must know of them."""
        changes: dict[str, Any] = {}
        if self._dtype() is not None:
            changes["dtype"] = self.settings.dtype
        if base.tied and not tied:
            changes["tie_word_embeddings"] = False
        if base.coded:
            changes["quantization_config"] = None
        notes = write_small_files(checkpoint_of(self.base), checkpoint_of(self.tuned), folder, changes)
        if base.tied and not tied:
            notes.append(f"{self.tuned.name} has a head of its own: the merge has one too, apart from the embedding.")
        return notes

    def _notes(self, alphas: Alphas, tied: bool) -> Iterator[str]:
        every = [*alphas.blocks, alphas.embedding, alphas.head, *(a for row in alphas.overrides.values() for a in row)]
        if min(every) < 0 or max(every) > 1:
            yield f"Alphas from {min(every):g} to {max(every):g}: outside 0 to 1 the merge extrapolates."
        if self._carried:
            yield f"mergekit reads no carriers: there is no {RECIPE}."
        if tied and alphas.head != alphas.embedding:
            yield f"The head is tied to the embedding, one tensor: both take the alpha {alphas.embedding:g}."

    def _described(self, variant: Variant) -> dict[str, Any]:
        if self.settings.weight_hashes:
            return variant.as_record()
        role = "base" if variant is self.base else "tuned"
        return {"name": variant.name, "role": role, "reference": variant.reference}

    def _check_space(self, folder: Path, weights: Weights) -> None:
        if shutil.disk_usage(folder).free < weights.size:
            raise MidblockError(f"no space left for {self.name}: {size_text(weights.size)} are needed")

    def _recipe(self, weights: Weights, alphas: Alphas) -> str:
        """What mergekit would be asked for."""
        given: dict[str | None, tuple[float, ...]] = {}
        if self.settings.interpolation == "gradient":
            given[None] = self.numbers
            given.update(read_overrides(self.settings.module_alphas))
        items = [item for item in weights if item.paired]
        heads = {item.name: item.alpha for item in items if item.projection.role == "head"}
        found = rules(alphas, [item.projection for item in items], given, heads)
        written = Counter(item.dtype for item in items).most_common(1)[0][0]
        ours, theirs = (mergekit_name(checkpoint_of(each)) for each in (self.base, self.tuned))
        return recipe(found, ours, theirs, written)


def _loss_note(weights: Weights) -> Iterator[str]:
    if (lost := max(weights.losses, default=0.0)) >= NOTED_LOSS:
        kinds = sorted({str(item.dtype).removeprefix("torch.") for item in weights if item.dtype.itemsize < 4})
        what = f"up to {lost:.0%} of a tensor's change"
        yield f"Rounding to {' and '.join(kinds)} takes away {what}; --dtype float32 keeps it."


def _writer(text: str) -> Any:
    return lambda path: path.write_text(text, encoding="utf-8")
