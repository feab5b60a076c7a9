"""From a checkpoint to a model that can run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from midblock.base import MidblockError
from midblock.checkpoints.adapter import Adapter
from midblock.checkpoints.apply import put_in
from midblock.checkpoints.changes import Changes, known_of
from midblock.checkpoints.checkpoint import Checkpoint
from midblock.checkpoints.config import STRANGE, reason_of
from midblock.checkpoints.effective import EffectiveTensors
from midblock.checkpoints.fitting import check_memory, check_shapes, without_copies
from midblock.checkpoints.merged_by_peft import merge_in
from midblock.checkpoints.prompted import put_prompt
from midblock.checkpoints.readable import check_readable, computable
from midblock.checkpoints.settings import LoadSettings
from midblock.checkpoints.skeleton import auto_class, skeleton_of
from midblock.checkpoints.soft_prompt import SoftPrompt
from midblock.checkpoints.stored_names import pieces_of


def pick_device(device: str) -> torch.device:
    """Turn `auto` into the accelerator if there is one, of several processes this one's own, else the CPU.

    Raises:
        MidblockError: a device that torch does not know or that is not here.
    """
    if device == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if found is None or "LOCAL_RANK" not in os.environ:
            return found or torch.device("cpu")
        return torch.device(found.type, int(os.environ["LOCAL_RANK"]) % torch.accelerator.device_count())
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise MidblockError(f"device {device!r} is not available", hint="--device auto takes what is there") from error
    if chosen.type == "meta":
        raise MidblockError("device 'meta' holds no numbers", hint="--device auto takes what is there")
    return chosen


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """Turn `auto` into float32 on the CPU and the checkpoint's own type on an accelerator."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return getattr(torch, dtype)


def load_model(checkpoint: Checkpoint, settings: LoadSettings, *, whole: bool = False) -> nn.Module:
    """Load a causal language model for reading: evaluation mode, no gradients, adapter merged in, carriers put in.

    Args:
        whole: of a multimodal model with its towers, so that saving it loses nothing.

    Raises:
        MidblockError: the checkpoint is no causal language model, a file is truncated or corrupt, a tensor is
            missing or misshapen, or stored as codes of an unknown kind, the adapter does not fit, or the device is
            not there; or `max_memory` is given, which it would not keep.
    """
    if settings.max_memory is not None:
        what = f"max_memory cannot be kept: this would load all of {checkpoint.name}"
        raise MidblockError(what, hint="analyze, probe and swap run block by block; leave it out for the rest")
    place = pick_device(settings.device)
    check_files(checkpoint)
    options: dict[str, Any] = {
        "dtype": pick_dtype(settings.dtype, place),
        "device_map": settings.device_map,
        "attn_implementation": settings.attn_implementation,
        "ignore_mismatched_sizes": True,  # so that the tensor can be named below
        "output_loading_info": True,
    }
    try:
        with quiet_transformers():
            model, loading = _load_dequantised(checkpoint, options) or _load(checkpoint, settings, options, whole)
    except torch.OutOfMemoryError:
        raise
    except (*STRANGE, SafetensorError) as error:
        raise MidblockError(f"cannot load {checkpoint.name}: {reason_of(error)}") from error
    if lost := sorted(loading["missing_keys"]):
        raise MidblockError(f"{checkpoint.name} lacks the tensor {lost[0]} ({len(lost)} missing in all)")
    if misfits := sorted(loading["mismatched_keys"]):
        name, found, expected = misfits[0]
        raise MidblockError(f"{checkpoint.name}: {name} is {list(found)}, its config wants {list(expected)}")
    if checkpoint.adapter is not None:
        model = _merge_adapter(model, checkpoint, checkpoint.adapter)
    put_in(model, checkpoint.carriers, checkpoint.name)
    if settings.device_map is None:
        model = model.to(place)
    model = model.eval().requires_grad_(False)
    if checkpoint.prompt is not None:
        _check_made_for(checkpoint, checkpoint.prompt)
        put_prompt(model, checkpoint.prompt, checkpoint.name)
    return model


def _check_made_for(checkpoint: Checkpoint, prompt: SoftPrompt) -> None:
    """Raise MidblockError for a soft prompt that was made for other weights."""
    if prompt.weight_hash is not None and prompt.weight_hash != checkpoint.bare.weight_hash():
        what = f"{checkpoint.reference}: the soft prompt was made for other weights"
        raise MidblockError(what, hint=f"it was made for {prompt.base}")


def _load(checkpoint: Checkpoint, settings: LoadSettings, options: Mapping[str, Any], whole: bool) -> tuple[Any, Any]:
    """The model as transformers loads it, and what it says about that."""
    loaded: tuple[Any, Any] = auto_class(checkpoint.config, whole=whole).from_pretrained(
        checkpoint.folder,
        trust_remote_code=settings.trust_remote_code,
        use_safetensors=not checkpoint.pickled,
        **options,
    )
    return loaded


def _load_dequantised(checkpoint: Checkpoint, options: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """The same of a model whose files hold codes, from the weights that they mean; None where they hold none.

    Raises:
        MidblockError: their meaning is not known.
    """
    with checkpoint.tensors() as files:
        if all(computable(files.dtype(name)) for name in files.names):
            return None
    with check_readable(
        EffectiveTensors.of_checkpoint(replace(checkpoint, adapter=None, carriers=()), checkpoint.name)
    ) as tensors:
        if not tensors.coded:
            return None
        config: Any = checkpoint.config
        for part in {id(each): each for each in (config, config.get_text_config())}.values():
            if hasattr(part, "quantization_config"):
                del part.quantization_config
        kind = tensors.store.dtype(next(iter(tensors.coded))) if options["dtype"] == "auto" else options["dtype"]
        state = {name: tensors.store.read(name).to(kind, copy=True) for name in tensors.store.names}
    model_class: Any = type(skeleton_of(config, trust_remote_code=checkpoint.trust_remote_code))
    loaded: tuple[Any, Any] = model_class.from_pretrained(
        None, config=config, state_dict=state, **{**options, "dtype": kind}
    )
    if (checkpoint.folder / "generation_config.json").exists():
        from transformers import GenerationConfig

        loaded[0].generation_config = GenerationConfig.from_pretrained(checkpoint.folder)
    return loaded


def check_files(checkpoint: Checkpoint) -> None:
    """Open every file once: one that is corrupt, or another model's, or at odds with itself, is named before."""
    skeleton: Any = skeleton_of(checkpoint.config, trust_remote_code=checkpoint.trust_remote_code)
    with checkpoint.tensors() as files:
        shapes = {name: files.shape(name) for name in files.names}
        pieces = without_copies(pieces_of(shapes, skeleton), files, checkpoint.name)
        check_shapes(pieces, files, skeleton, checkpoint.name)
        check_memory(skeleton, sum(files.nbytes(name) for name in files.names), checkpoint.name)
    if checkpoint.adapter is not None:
        checkpoint.adapter.tensors().close()


def _merge_adapter(model: nn.Module, checkpoint: Checkpoint, adapter: Adapter) -> nn.Module:
    """Merge the adapter, once all that it changes was found in the base as a comparison of weights finds it."""
    known, anatomy = known_of(checkpoint)
    if adapter.settings.inexpressible is None:
        Changes.of(adapter, known, anatomy.projections)
    with quiet_transformers():
        return merge_in(model, adapter, known)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold back transformers' progress bars and notices, ours say it shorter."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
