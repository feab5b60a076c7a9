"""Base plus adapter by PEFT itself, for what is no change of the base's tensors; the whole model is built.

Cost: the model in float32, and two forward passes of a few tokens to compare logits. Described in
docs/tuning/export.md.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from midblock.base import MidblockError
from midblock.checkpoints import Checkpoint, LoadSettings, TensorReader, load_model, quiet_transformers
from midblock.checkpoints.adapter import Adapter
from midblock.checkpoints.checkpoint_files import copy_small_files, copy_tokenizer_of_adapter
from midblock.tuning.export.merged import adapter_of

PROBES = 24  # tokens, spread over the vocabulary, that the models before and after merging are compared on
TOLERANCE = 1e-3  # of the largest logit; both models compute in float32


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
    probe = torch.linspace(0, base.get_input_embeddings().num_embeddings - 1, PROBES).long()[None]
    tuned = _attach(base, adapter)
    with torch.no_grad(), quiet_transformers():
        before = tuned(input_ids=probe).logits.double()
        merged = _merge(tuned, adapter)
        after = merged(input_ids=probe).logits.double()
        error = float((after - before).abs().max() / before.abs().max())
        if not error <= TOLERANCE:
            what = f"{adapter.folder}: PEFT's merged model computes something else (logits differ by {error:.1e})"
            raise MidblockError(what, hint="use the adapter unmerged")
        merged.to(dtype or _stored_type(checkpoint)).save_pretrained(folder)
    config = (folder / "config.json").read_bytes()
    copy_small_files(checkpoint.folder, folder, code=checkpoint.trust_remote_code)
    copy_tokenizer_of_adapter(adapter.folder, folder)
    (folder / "config.json").write_bytes(config)
    return error


def _attach(base: nn.Module, adapter: Adapter) -> Any:
    """Put the adapter on the model, and see that all of it arrived."""
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise MidblockError("peft is needed to merge this adapter", hint='pip install "midblock[train]"') from error
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            tuned: Any = PeftModel.from_pretrained(base, str(adapter.folder)).eval()
        except (ValueError, TypeError, RuntimeError, KeyError, NotImplementedError) as error:
            raise MidblockError(f"PEFT cannot load {adapter.folder} on its base: {_first_line(error)}") from error
        arrived = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    with adapter.tensors() as own:
        there = sum(_entries(own, name) for name in own.names if "lora_" in name)
    loaded = sum(tensor.numel() for name, tensor in arrived.items() if "lora_" in name)
    if there != loaded or any("missing adapter keys" in str(warning.message) for warning in said):
        what = f"the adapter {adapter.folder} does not fit its base: {there} numbers in its file, {loaded} in the model"
        raise MidblockError(what, hint="another base was tuned; --base names the right one")
    return tuned


def _merge(tuned: Any, adapter: Adapter) -> Any:
    if not hasattr(tuned, "merge_and_unload"):
        raise MidblockError(f"{adapter.folder}: {adapter.settings.inexpressible} cannot be merged")
    try:
        return tuned.merge_and_unload(safe_merge=True)
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise MidblockError(f"PEFT cannot merge {adapter.folder}: {_first_line(error)}") from error


def _stored_type(checkpoint: Checkpoint) -> torch.dtype:
    sizes: Counter[torch.dtype] = Counter()
    with checkpoint.tensors() as base:
        for name in base.names:
            if base.dtype(name).is_floating_point:
                sizes[base.dtype(name)] += base.nbytes(name)
    return sizes.most_common(1)[0][0]


def _entries(own: TensorReader, name: str) -> int:
    return own.nbytes(name) // own.dtype(name).itemsize


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
