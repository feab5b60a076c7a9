"""What a tuning run leaves: a PEFT adapter or a whole checkpoint with its model card, and the table of what moved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from midblock.analysis.weight_comparison import WeightComparison
from midblock.base import LayerRow, LayerTable, Progress
from midblock.base.files import folder_atomically, write_failure
from midblock.checkpoints import BASE, Checkpoint, Variant, open_checkpoint, quiet_transformers
from midblock.tuning.loop.sharding import gathered
from midblock.tuning.place.prepared import Prepared

MOVED = ("delta_fro", "delta_rel", "changed_fraction")


@dataclass(frozen=True)
class Artifact:
    """A finished tuning run.

    Attributes:
        folder: the run folder.
        path: the PEFT adapter or safetensors checkpoint inside it; a model reference like any other.
        table: gradient norms and weight change by layer.
        log: the lines of `log.jsonl`.
        summary: what `summary.json` holds.
    """

    folder: Path
    path: Path
    table: LayerTable
    log: tuple[Mapping[str, Any], ...]
    summary: Mapping[str, Any]

    @property
    def losses(self) -> list[float]:
        """The loss of each logged step, nats per target token."""
        return [line["loss"] for line in self.log]


def save_model(prepared: Prepared, tokenizer: Any, checkpoint: Checkpoint, target: Path, card: str, main: bool) -> None:
    """Write the adapter or the checkpoint; it appears under its name only when it is whole.

    Every process must call this (sharded tensors are put together); the main one writes.

    Raises:
        MidblockError: the disk is full, or the place cannot be written.
    """
    trainable = prepared.trainable
    prepared.causal.config = prepared.config
    state = gathered(trainable.model, trainable.saved)
    if not main:
        return
    try:
        with folder_atomically(target) as made, quiet_transformers():
            trainable.write(made, state, checkpoint)
            tokenizer.save_pretrained(made)
            (made / "README.md").write_text(card, encoding="utf-8")
    except SafetensorError as error:
        raise write_failure(target, error) from error


def moved_rows(
    base: Checkpoint, tuned: Path, name: str, blocks: int, notes: list[str], progress: Progress
) -> list[LayerRow]:
    """How far each weight moved, read back from what was written."""
    after = open_checkpoint(str(tuned), adapter_base=base.reference.text)
    comparison = WeightComparison(
        base=Variant(BASE, base),
        tuned=Variant(name, after),
        blocks=blocks,
        wanted=frozenset(MOVED),
        layers=frozenset(range(-1, blocks + 1)),
        rank=1,
        notes=notes,
    )
    with base.tensors() as tensors:
        total = sum(math.prod(tensors.shape(tensor)) for tensor in tensors.names)
    return list(comparison.rows(progress.phase("comparing weights", total)))


def gradient_rows(log: Sequence[Mapping[str, Any]], name: str, blocks: int) -> list[LayerRow]:
    """Gradient norms by layer and part: in the first logged step, and on average over all of them."""
    rows = []
    places = dict.fromkeys(key for line in log for key in _norms(line))
    for layer, part in places:
        norms = [_norms(line)[layer, part] for line in log if (layer, part) in _norms(line)]
        for metric, value in (("gradient_norm", sum(norms) / len(norms)), ("gradient_norm_first", norms[0])):
            rows.append(LayerRow(name, layer, blocks, metric, value, n=len(norms), module=part))
    return rows


def _norms(line: Mapping[str, Any]) -> dict[tuple[int, str], float]:
    whole = {(int(layer), "block"): norm for layer, norm in line.get("gradient_by_block", {}).items()}
    parts = {
        (int(layer), part): norm
        for key, norm in line.get("gradient_by_part", {}).items()
        for layer, _, part in [key.partition(".")]
    }
    return whole | parts
