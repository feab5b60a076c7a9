"""A model made ready to train: loaded, adapters attached or weights chosen, and nothing else trainable."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from midblock.base import LayerPlan, MidblockError
from midblock.checkpoints import Anatomy, Checkpoint, LoadSettings, load_model
from midblock.tuning.place.gradients import plain_name
from midblock.tuning.place.methods import method_of
from midblock.tuning.place.trainable import Start, Trainable
from midblock.tuning.place.weights import frozen_by_the_model
from midblock.tuning.settings import CourseSettings


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model and the plan it follows.

    Attributes:
        trainable: what the method made of the model.
        causal: the causal language model.
        plan: the blocks in which something is trained.
        config: of the model as it was loaded; trainers set switches in its own that are no part of it.
        notes: what a reader must know of what was made trainable.
        total_parameters: of the model without adapters, tied tensors once.
    """

    trainable: Trainable
    causal: nn.Module
    anatomy: Anatomy
    plan: LayerPlan
    total_parameters: int
    config: Any = None
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> nn.Module:
        """The outermost module: PEFT's wrapper, or the causal language model itself."""
        return self.trainable.model

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Trained parameters, by their names in `model`."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    @property
    def first(self) -> int:
        """The lowest block with a graph: 0 if the embedding is trained, L if only what is above the blocks."""
        layers = {self.anatomy.projection_of(plain_name(name)).layer for name in self.trained}
        return max(0, min(layers))

    def as_record(self, settings: CourseSettings) -> dict[str, Any]:
        """The plan for `plan.json`."""
        by_part = self.trainable.by_part
        return {
            "layers": str(self.plan),
            "blocks": list(self.plan.blocks),
            "total_blocks": self.plan.total,
            "method": settings.method,
            "targets": self.trainable.targets(),
            "trained_parameters": sum(by_part.values()),
            "total_parameters": self.total_parameters,
            "by_part": by_part,
            "loss": settings.loss,
        }


def prepare(
    checkpoint: Checkpoint,
    plan: LayerPlan,
    settings: CourseSettings,
    loading: LoadSettings,
    others: Mapping[str, Checkpoint] | None = None,
) -> Prepared:
    """Load the base and make exactly the planned parameters trainable.

    Args:
        loading: with the dtype the weights shall have in memory; the model is loaded on the CPU, the trainer places it.
        others: what the method opened besides the base.

    Raises:
        MidblockError: the plan fits the model nowhere, a rank is larger than its matrix, or 4-bit loading is not to be
            had here.
    """
    method = method_of(settings)
    whole = not method.base_stays
    causal = _load_in_4bit(checkpoint, loading) if settings.load_in_4bit else _load(checkpoint, loading, whole)
    anatomy, config = Anatomy.of(causal), deepcopy(causal.config)
    total = sum(value.numel() for value in causal.parameters())
    trainable = method.make(Start(causal, plan, settings, loading, others or {}))
    trained = plan.only({target["block"] for target in trainable.targets()})
    notes = _notes(plan, trained, settings.target_modules or "attention")
    if not method.base_stays:
        notes += _kept_by_the_model(causal, trained, anatomy)
    return Prepared(
        trainable=trainable,
        causal=causal,
        anatomy=anatomy,
        plan=trained,
        total_parameters=total,
        config=config,
        notes=notes,
    )


def _notes(asked: LayerPlan, trained: LayerPlan, modules: str) -> tuple[str, ...]:
    empty = tuple(block for block in asked.blocks if block not in trained.blocks)
    if not empty:
        return ()
    return (f"Nothing of {modules!r} is in the chosen blocks {LayerPlan(asked.total, empty)}: they stay as they are.",)


def _kept_by_the_model(causal: nn.Module, trained: LayerPlan, anatomy: Anatomy) -> tuple[str, ...]:
    kept = [
        name
        for name in frozen_by_the_model(causal)
        if anatomy.projection_of(name).block in trained.blocks and not causal.get_parameter(name).requires_grad
    ]
    if not kept:
        return ()
    return (f"The architecture itself does not train {min(kept)} ({len(kept)} such in all): left as they are.",)


def _load(checkpoint: Checkpoint, loading: LoadSettings, whole: bool) -> nn.Module:
    return load_model(checkpoint, replace(loading, device="cpu"), whole=whole)


def _load_in_4bit(checkpoint: Checkpoint, loading: LoadSettings) -> nn.Module:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MidblockError("--load-in-4bit needs bitsandbytes", hint="pip install bitsandbytes") from error
    if not torch.cuda.is_available():
        raise MidblockError("--load-in-4bit needs a CUDA device, and there is none", hint="leave it out")
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.folder,
        quantization_config=config,
        device_map={"": torch.cuda.current_device()},
        attn_implementation=loading.attn_implementation,
        trust_remote_code=loading.trust_remote_code,
    )
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
