"""`merge`: a base and a model tuned from it, mixed block by block into a new checkpoint, tensor by tensor.

W = (1 − α) W_base + α W_tuned, with an α for each block. Cost: both parents are read once; few tensors are held.
Described in docs/causes/merge.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from midblock.base import Progress, divide, folder_atomically
from midblock.base.depth_list import read_numbers
from midblock.base.names import name_note, name_of
from midblock.checkpoints import load_pair
from midblock.interventions.merge.settings import MergeSettings, with_texts
from midblock.interventions.merge.writing import Merging
from midblock.runs.request import draft_of
from midblock.runs.run import Ready, carry_out
from midblock.runs.where import Where

VERB = "merge"


def merge(base: str | Path, tuned: str | Path, alphas: str | float | Sequence[float], **options: Any) -> Path:
    """Write W = (1 − α) W_base + α W_tuned, with an α for each block, as a checkpoint that transformers loads.

    Computed in float64 and rounded at the end; where α is 0 or 1 the parent's bytes are copied. Few tensors are held.
    The folder is also the run folder; it appears under its name when it is whole.

    Args:
        base, tuned: model references of one architecture; `tuned` may be an adapter.
        alphas: α: one number, one a block, or fewer, which are spread over the blocks; as numbers or a text `0,0.5,1`.
        **options: fields of `MergeSettings`, and of `Where`: `output_dir`, the folder to write, has to be given;
            `resume` leaves a finished merge of the same settings as it is.

    Returns:
        The folder.

    Raises:
        MidblockError: anything the user can mend; nothing new stands at `output_dir` then.

    Example:
        >>> folder = merge(base, tuned, "0,0.5,1", output_dir="runs/half")
        >>> (folder / "model.safetensors").exists()
        True
    """
    where, settings = divide(with_texts(options), Where, MergeSettings)
    folder, numbers = where.needed(VERB), read_numbers(alphas)
    pair = load_pair(
        str(base), str(tuned), allow_pickle=settings.allow_pickle, trust_remote_code=settings.trust_remote_code
    )
    models = {"base": str(base), "tuned": str(tuned), "alphas": ",".join(map(_text, numbers))}
    draft = draft_of(VERB, pair, None, settings, models=models)
    merging = Merging(pair, settings, numbers, name_of(folder, "merged"))

    def prepare(progress: Progress) -> Ready:
        return Ready(draft.decided({}), merging.write, notes=[*name_note(folder, "merged"), *pair.notes()])

    carry_out(draft, prepare, where, place=folder_atomically)
    return folder


def _text(number: float) -> str:
    """The shortest text that reads as this very number."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)
