"""Split a model over the processes of one run with torch's own `fully_shard` (FSDP2).

accelerate turns FSDP on for accelerators only; torch's own runs anywhere, and transformers' Trainer leaves a model
alone that says it is sharded already.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.runs.processes import world_size


def shard(model: nn.Module, causal: nn.Module, anatomy: Anatomy, device: torch.device, half: bool) -> None:
    """Shard every block and then the rest, in place.

    Args:
        model: the outermost module, PEFT's wrapper if there is one.
        causal: the causal language model inside, or the same.
        device: where this process computes.
        half: compute in bfloat16.

    Raises:
        MidblockError: this is not one of several processes, or weights have several dtypes.
    """
    world = world_size()
    if world < 2:
        raise MidblockError("--shard splits a model over several processes", hint="torchrun --nproc-per-node 2 …")
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if len(dtypes) > 1:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise MidblockError(f"--shard wants one dtype for all weights; there are {names}", hint="--dtype float32")
    mesh = init_device_mesh(device.type, (world,))
    policy: dict[str, Any] = {"mesh": mesh}
    if half:
        policy["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in anatomy.blocks:
        fully_shard(block, **policy)
    fully_shard(model, **policy)
    # what transformers' Trainer asks to know that placement and reduction are not accelerate's to do
    causal._is_distributed_loading_by_transformers = True  # type: ignore[assignment]
    causal._is_fsdp_managed_module = True  # type: ignore[assignment]
    causal.config.distributed_config = _Replicas()  # type: ignore[union-attr]


def release(causal: nn.Module) -> None:
    """Take back what `shard` told the Trainer, so that the model is saved like any other once it is put together."""
    del causal._is_distributed_loading_by_transformers, causal._is_fsdp_managed_module
    del causal.config.distributed_config  # type: ignore[union-attr]


class _Replicas:
    """The one field of transformers' DistributedConfig that the Trainer reads of a sharded model."""

    dp_replicate_size = 1


def gathered(model: nn.Module, names: set[str] | None = None) -> dict[str, torch.Tensor]:
    """Whole parameters and stored buffers on the CPU, by name; every process must call it, all get the result.

    Args:
        names: only these.
    """
    whole = {}
    for name, value in model.state_dict().items():
        if names is None or name in names:
            tensor = value.full_tensor() if isinstance(value, DTensor) else value
            whole[name] = tensor.detach().cpu()
    return whole
