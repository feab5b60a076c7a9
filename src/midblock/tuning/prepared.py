"""A model made ready to train: loaded, adapters attached or weights chosen, and nothing else trainable."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from midblock.base import LayerPlan, MidblockError
from midblock.checkpoints import Anatomy, Checkpoint, LoadSettings, load_model
from midblock.checkpoints.roles import place
from midblock.tuning.adapters import attach
from midblock.tuning.gradients import plain_name
from midblock.tuning.settings import TuneSettings
from midblock.tuning.weights import by_part, choose_weights, train_only
from midblock.tuning.where import AdapterPlan, place_adapters


@dataclass
class Prepared:
    """A model and the plan it follows.

    Attributes:
        model: the outermost module: PEFT's wrapper, or the causal language model itself.
        causal: the causal language model.
        plan: the blocks.
        adapters: with `lora`, which adapters were attached.
        by_part: trained parameters by part (attention, mlp, embedding, …).
        total_parameters: of the model without adapters, tied tensors once.
    """

    model: nn.Module
    causal: nn.Module
    anatomy: Anatomy
    plan: LayerPlan
    adapters: AdapterPlan | None
    by_part: dict[str, int]
    total_parameters: int

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Trained parameters, by their names in `model`."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    @property
    def trained_parameters(self) -> int:
        return sum(self.by_part.values())

    @property
    def first(self) -> int:
        """The lowest block with a graph: 0 if the embedding is trained, L if only what is above the blocks."""
        layers = {place(plain_name(name), len(self.anatomy)).layer for name in self.trained}
        return max(0, min(layers))

    def anchored(self) -> dict[str, nn.Parameter]:
        """Weights that an anchor can hold on to, by the name of the weight in the model: 2-D, or 3-D experts.

        With adapters these are the frozen weights under them.
        """
        if self.adapters is None:
            return {name: value for name, value in self.trained.items() if value.ndim >= 2}
        plain = {plain_name(name): value for name, value in self.model.named_parameters() if ".lora_" not in name}
        return {f"{target.name}.weight": plain[f"{target.name}.weight"] for target in self.adapters.targets}

    def as_record(self, settings: TuneSettings) -> dict[str, Any]:
        """The plan for `plan.json`."""
        return {
            "layers": str(self.plan),
            "blocks": list(self.plan.blocks),
            "total_blocks": self.plan.total,
            "method": settings.method,
            "targets": self._targets(settings),
            "trained_parameters": self.trained_parameters,
            "total_parameters": self.total_parameters,
            "by_part": self.by_part,
            "loss": settings.loss,
        }

    def _targets(self, settings: TuneSettings) -> list[dict[str, Any]]:
        if self.adapters is not None:
            return [
                {
                    "name": target.name,
                    "block": target.block,
                    "role": target.role,
                    "shape": list(target.shape),
                    "rank": target.rank,
                    "alpha": target.alpha,
                    "scale": self.adapters.scale(target, settings.use_rslora),
                    "parameters": target.parameters,
                }
                for target in self.adapters.targets
            ]
        return [
            {
                "name": name,
                "block": where.layer,
                "role": where.module,
                "shape": list(value.shape),
                "rank": None,
                "alpha": None,
                "scale": None,
                "parameters": value.numel(),
            }
            for name, value in self.trained.items()
            for where in [place(name, len(self.anatomy))]
        ]


def prepare(checkpoint: Checkpoint, plan: LayerPlan, settings: TuneSettings, loading: LoadSettings) -> Prepared:
    """Load the base and make exactly the planned parameters trainable.

    Args:
        loading: with the dtype the weights shall have in memory; the model is loaded on the CPU, the trainer places it.

    Raises:
        MidblockError: the plan fits the model nowhere, a rank is larger than its matrix, or 4-bit loading is not to be
            had here.
    """
    causal = _load_in_4bit(checkpoint, loading) if settings.load_in_4bit else _load(checkpoint, loading)
    anatomy = Anatomy.of(causal)
    total = sum(value.numel() for value in causal.parameters())
    if settings.method == "full":
        chosen = choose_weights(causal, plan, settings)
        train_only(causal, chosen)
        return Prepared(causal, causal, anatomy, plan, None, by_part(causal, chosen), total)
    adapters = place_adapters(causal, plan, settings)
    causal.requires_grad_(False)
    model = attach(causal, adapters, settings, seed=settings.seed)
    return Prepared(model, causal, anatomy, plan, adapters, adapters.by_part(), total)


def _load(checkpoint: Checkpoint, loading: LoadSettings) -> nn.Module:
    return load_model(checkpoint, replace(loading, device="cpu"))


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
