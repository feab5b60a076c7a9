"""Our options as TRL's SFTConfig: one place where names meet."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from midblock.base import MidblockError, unknown
from midblock.checkpoints import LoadSettings
from midblock.checkpoints.models import pick_device
from midblock.runs.processes import world_size
from midblock.tuning.place.methods import method_of
from midblock.tuning.settings import CourseSettings, Loop

# Options that mean the same there and have the same name.
SAME = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "max_steps", "warmup_steps",
    "lr_scheduler_type", "optim", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "seed",
)  # fmt: skip


def training_arguments(settings: CourseSettings, loop: Loop, loading: LoadSettings, folder: Path) -> Any:
    """Build the SFTConfig; with several processes this joins them.

    Args:
        folder: where checkpoints go.

    Raises:
        MidblockError: TRL or a tracker is not installed, a name that transformers does not know, or a device that is
            not here.
    """
    try:
        from trl import SFTConfig
    except ImportError as error:
        raise MidblockError("tuning needs peft and trl", hint='pip install "midblock[train]"') from error
    _check_names(settings)
    cpu = pick_device(loading.device).type == "cpu"
    local = loading.device.partition(":")[2]
    if local not in ("", "0"):
        raise MidblockError(
            f"training runs on the first visible device, not on {loading.device}", hint=f"CUDA_VISIBLE_DEVICES={local}"
        )
    given = {name: getattr(settings, name) for name in SAME}
    try:
        arguments = SFTConfig(
            **given,
            num_train_epochs=loop.num_train_epochs,
            output_dir=str(folder),
            use_cpu=cpu,
            ddp_backend="gloo" if cpu and world_size() > 1 else None,
            ddp_find_unused_parameters=False,
            bf16=half(loading),
            fp16=False,
            **_checkpointing(SFTConfig, settings.gradient_checkpointing),
            save_strategy="steps" if loop.saves else "no",
            save_steps=loop.save_steps or 500,
            save_total_limit=2,
            logging_strategy="steps",
            logging_steps=loop.logging_steps,
            logging_nan_inf_filter=False,  # else a loss that is no number is logged as the mean of those before
            logging_first_step=True,
            report_to=list(settings.report_to) or "none",
            disable_tqdm=True,
            dataloader_pin_memory=not cpu,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            router_aux_loss_coef=0.0 if method_of(settings).base_stays else None,
            data_seed=settings.seed,
        )
        _try_out(arguments)
        # one device a process: beyond one GPU the Trainer would use DataParallel and multiply the batch, unasked
        arguments._n_gpu = min(arguments.n_gpu, 1)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise MidblockError(f"transformers refuses the options: {first_line(error)}") from error
    return arguments


def _check_names(settings: CourseSettings) -> None:
    """Raise MidblockError for an optimiser or a schedule that transformers does not know."""
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    for kind, name, known in (
        ("optimizer", settings.optim, [each.value for each in OptimizerNames]),
        ("learning-rate schedule", settings.lr_scheduler_type, [each.value for each in SchedulerType]),
    ):
        if name not in known:
            raise unknown(kind, name, known)


def _try_out(arguments: Any) -> None:
    """Make optimiser class, schedule and trackers once, to hear now what training would hear after loading the model.

    Raises:
        ValueError, TypeError, ImportError, RuntimeError: an unknown tracker, a package that is missing, or a name that
            wants more options than there are here.
    """
    from transformers import Trainer, get_scheduler
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    one: Any = torch.nn.Linear(1, 1)
    Trainer.get_optimizer_cls_and_kwargs(arguments, one)
    steps = max(arguments.max_steps, 2)
    get_scheduler(
        arguments.lr_scheduler_type,
        torch.optim.SGD(one.parameters(), lr=arguments.learning_rate),
        num_warmup_steps=arguments.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )
    for callback in get_reporting_integration_callbacks(arguments.report_to):
        callback()


def _checkpointing(config: type, wanted: bool) -> dict[str, Any]:
    """Recomputation in the backward pass, under the name that this version of transformers has for it.

    Non-reentrant: under a frozen prefix the reentrant kind gives no gradient, silently.
    """
    new = "activation_checkpointing" in {each.name for each in fields(config)}
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    return {name: wanted, f"{name}_kwargs": {"use_reentrant": False}}


def half(loading: LoadSettings) -> bool:
    """Whether to compute in bfloat16: on an accelerator, unless another precision is asked for."""
    return pick_device(loading.device).type != "cpu" and loading.dtype in ("auto", "bfloat16")


def weight_dtype(settings: CourseSettings, loop: Loop, loading: LoadSettings) -> str:
    """Precision of the weights in memory: frozen ones as stored on an accelerator, trained ones in float32.

    At the learning rates of full tuning, bfloat16 weights would not move.
    """
    if loading.dtype != "auto":
        return loading.dtype
    on_cpu = pick_device(loading.device).type == "cpu"
    as_stored = method_of(settings).base_stays and not loop.shard and not on_cpu
    return "auto" if as_stored else "float32"


def refuse_deepspeed() -> None:
    """Raise MidblockError under DeepSpeed, where parameters and gradients are not at hand to be checked."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        hint = "FSDP2 by accelerate, or torchrun with --shard, split a model too"
        raise MidblockError(
            "DeepSpeed keeps gradients where midblock cannot check them, so it is not supported", hint=hint
        )


def first_line(error: Exception) -> str:
    """What another library says, as far as it fits on a line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
