"""Base plus adapter by PEFT itself, for what is no change of the base's tensors; the whole model is built.

Cost: the model in float32, and two forward passes of a few tokens to compare logits. Described in
docs/tuning/export.md.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from midblock.checkpoints import Checkpoint, LoadSettings, load_model, quiet_transformers
from midblock.checkpoints.changes import known_of
from midblock.checkpoints.checkpoint_files import copy_small_files, copy_tokenizer_of_adapter
from midblock.checkpoints.merged_by_peft import merge_compared, put_on
from midblock.tuning.export.merged import adapter_of


def write_merged_by_peft(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None) -> float:
    """Load the base in float32, let PEFT merge the adapter, and save the model with its tokenizer.

    Args:
        checkpoint: an adapter on its base.
        folder: an existing, empty folder.
        dtype: of all tensors; None for the type most of the base is stored in.

    Returns:
        The largest difference of a logit before and after merging, relative to the largest logit; in float32, before
        the weights are rounded to `dtype`.

    Raises:
        MidblockError: PEFT cannot load or merge this adapter, or the merged model computes something else.
    """
    adapter = adapter_of(checkpoint)
    loading = LoadSettings(
        dtype="float32",
        device="cpu",
        allow_pickle=checkpoint.allow_pickle,
        trust_remote_code=checkpoint.trust_remote_code,
    )
    base: Any = load_model(replace(checkpoint, adapter=None), loading)
    known, _ = known_of(checkpoint)
    with quiet_transformers():
        merged: Any
        merged, difference = merge_compared(put_on(base, adapter, known), adapter)
        difference.check(adapter)
        merged.to(dtype or _stored_type(checkpoint)).save_pretrained(folder)
    config = (folder / "config.json").read_bytes()
    copy_small_files(checkpoint.folder, folder, code=checkpoint.trust_remote_code)
    copy_tokenizer_of_adapter(adapter.folder, folder)
    (folder / "config.json").write_bytes(config)
    return difference.error


def _stored_type(checkpoint: Checkpoint) -> torch.dtype:
    sizes: Counter[torch.dtype] = Counter()
    with checkpoint.tensors() as base:
        for name in base.names:
            if base.dtype(name).is_floating_point:
                sizes[base.dtype(name)] += base.nbytes(name)
    return sizes.most_common(1)[0][0]
