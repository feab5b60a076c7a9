"""What a tuning run can be asked for: every option once, with its unit and the papers' symbol or value."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from midblock.base import MidblockError, from_options, unknown
from midblock.tuning.factors import resolve_k
from midblock.tuning.losses import LOSSES, Objective

METHODS = ("lora", "full")
OUTSIDE = ("embedding", "head", "final_norm", "norms")
ANCHORS = ("none", "rpsft")
SCOPES = ("block", "subspace")
PREFIX_CACHE = ("auto", "on", "off")
SEEDS = 2**32  # NumPy takes no larger ones, and transformers seeds it
LARGEST = 2**31
WHOLE = (
    "lora_r", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "max_steps", "logging_steps",
    "save_steps",
)  # fmt: skip
ONLY_LORA = (
    "lora_r", "lora_scale", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "init_lora_weights", "rank_budget",
    "match_parameters", "load_in_4bit",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where in the model to train, and how many parameters."""

    layers: str = "all"
    """Blocks to tune: `01100`, `0,42,42,0,0` (a LoRA rank per segment), `6-17`, `0.2-0.8`, `all` or `auto:RUN`."""

    method: str = "lora"
    """`lora` (adapters, PEFT) or `full` (the chosen blocks' own weights)."""

    target_modules: str | None = None
    """Projections in a chosen block, by role: `attention` (q, k, v, o as in P1), `mlp`, `all`, or roles with commas
    (`q_proj,v_proj`). Left out: `attention` for adapters, every weight of the block with `full`."""

    also: tuple[str, ...] = ()
    """With `full`, parts outside the chosen blocks: `embedding`, `head`, `final_norm`, `norms` (every norm)."""

    lora_r: int = 16
    """r: rank of each adapter where the plan gives none and no budget is set."""

    lora_scale: float = 2.0
    """alpha/r, the same for every adapter whatever its rank."""

    lora_alpha: float | None = None
    """One alpha for all ranks, as P1 published (128): the scale then falls as ranks rise. Overrides `lora_scale`."""

    lora_dropout: float = 0.0
    """Dropout before each adapter (P1: 0.05)."""

    use_dora: bool = False
    """Weight-decomposed adapters (PEFT)."""

    use_rslora: bool = False
    """Scale alpha/√r instead of alpha/r (PEFT); it matters with `lora_alpha`, for `lora_scale` is the scale itself."""

    init_lora_weights: str = "default"
    """How PEFT draws adapters: `default`, `gaussian`, `orthogonal`, `pissa`, `olora`, …"""

    rank_budget: int | None = None
    """Sum of ranks over blocks, shared equally by the chosen ones (P1: 1024 for 1B, 2048 for 7B)."""

    match_parameters: str | None = None
    """Train as many parameters as another plan would: `all:64` is rank 64 on every block."""


@dataclass(frozen=True, kw_only=True)
class Anchoring:
    """How strongly to hold on to the pretrained weights."""

    anchor: str = "none"
    """`rpsft` holds on to the top singular block of each trained weight (P2); `none`."""

    anchor_k: str = "64"
    """k: singular directions kept, a number or a share of min(m, n) such as `0.25` (P2: 768)."""

    anchor_lambda: float = 1.0
    """λ: weight of the penalty (P2: 1)."""

    anchor_scope: str = "block"
    """`block` penalises U_kᵀΔV_k (P2); `subspace` also the first-order rotation out of the top spaces."""

    anchor_normalize: bool = False
    """Divide each weight's penalty by ‖Σ_k‖², so that λ means the same for every model."""

    anchor_dtype: str = "float32"
    """Precision the singular factors are kept in: `float32` or `bfloat16`."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Data order, optimiser and steps, named as transformers' TrainingArguments name them."""

    split: str | None = None
    """Split of the dataset; `train` when left out."""

    num_samples: int | None = None
    """Examples drawn from the dataset; all of them when left out."""

    template: str = "raw"
    """`raw` text, `chat` for the tokenizer's chat template, or a .jinja file."""

    max_length: int = 1024
    """Tokens an example is cut at; how many were cut is said before training."""

    learning_rate: float = 1e-4
    """Peak learning rate (P1: 1e-4 for 1B and 7B; P2, full: 1e-6)."""

    per_device_train_batch_size: int = 4
    """Examples in a forward pass on each device."""

    gradient_accumulation_steps: int = 1
    """Forward passes an optimiser step gathers."""

    num_train_epochs: float = 1.0
    """Passes over the examples."""

    max_steps: int = -1
    """Optimiser steps; overrides the epochs when positive."""

    warmup_steps: float = 0.0
    """Steps over which the learning rate rises from zero; below 1, a share of all steps (P2: 0.03)."""

    lr_scheduler_type: str = "linear"
    """`linear`, `cosine`, `constant`, `constant_with_warmup`, …"""

    optim: str = "adamw_torch"
    """Optimiser, by transformers' name."""

    adam_beta1: float = 0.9
    """β₁ of AdamW."""

    adam_beta2: float = 0.999
    """β₂ of AdamW (P2: 0.98)."""

    adam_epsilon: float = 1e-8
    """ε of AdamW (P2: 1e-7)."""

    weight_decay: float = 0.0
    """Decoupled weight decay."""

    max_grad_norm: float = 1.0
    """Gradients beyond this norm are scaled down to it; 0 leaves them."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass (non-reentrant): less memory, a third more time."""

    prefix_cache: str = "auto"
    """Keep what the frozen blocks below the lowest tuned one put out on disk and read it again: `on`, `off`, or `auto`
    (with more than one epoch, where it is exact)."""

    load_in_4bit: bool = False
    """QLoRA: the frozen weights in 4 bits (needs a GPU and bitsandbytes)."""

    shard: bool = False
    """Split weights, gradients and optimiser state over the processes of a `torchrun` (torch's FSDP2)."""

    seed: int = 0
    """Decides the examples drawn, their order, the adapters' start and dropout."""

    logging_steps: int = 1
    """Optimiser steps between lines of `log.jsonl`."""

    save_steps: int = 100
    """Optimiser steps between checkpoints that `--resume` goes on from; 0 for none."""

    report_to: tuple[str, ...] = ()
    """Trackers, as in transformers: `wandb`, `tensorboard`, `trackio`, …"""

    push_to_hub: bool = False
    """Upload the result to the hub."""

    hub_model_id: str | None = None
    """Where to upload it."""

    hub_private_repo: bool = True
    """Make a new hub repository private."""


@dataclass(frozen=True, kw_only=True)
class TuneSettings(Schedule, Anchoring, Objective, Placement):
    """Options of `midblock tune` that decide its result.

    Raises:
        MidblockError: an unknown name, a value out of range, or options that exclude each other.
    """

    def __post_init__(self) -> None:
        for kind, value, options in (
            ("method", self.method, METHODS),
            ("loss", self.loss, tuple(LOSSES)),
            ("anchor", self.anchor, ANCHORS),
            ("anchor scope", self.anchor_scope, SCOPES),
            ("anchor dtype", self.anchor_dtype, ("float32", "bfloat16")),
            ("prefix cache", self.prefix_cache, PREFIX_CACHE),
        ):
            if value not in options:
                raise unknown(kind, value, options)
        for part in self.also:
            if part not in OUTSIDE:
                raise unknown("part for `also`", part, OUTSIDE)
        self._check_numbers()
        self._check_together()

    def _check_numbers(self) -> None:
        positive = (
            "lora_r", "lora_scale", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps",
            "num_train_epochs", "logging_steps", "max_length", "anchor_lambda", "iw_temperature", "kl_beta",
            "adam_epsilon",
        )  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise MidblockError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("weight_decay", "max_grad_norm", "warmup_steps", "save_steps", "seed"):
            if not getattr(self, name) >= 0:
                raise MidblockError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in (*positive, "weight_decay", "warmup_steps", "lora_alpha"):
            if getattr(self, name) == float("inf"):
                raise MidblockError(f"{name} is inf; it must be finite")
        for name in WHOLE:
            if getattr(self, name) > LARGEST:
                raise MidblockError(f"{name} is {getattr(self, name)}; it must be at most 2^31")
        if self.seed >= SEEDS:
            raise MidblockError(f"seed is {self.seed}; it must be below 2^32")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise MidblockError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if self.lora_alpha is not None and not self.lora_alpha > 0:
            raise MidblockError(f"lora_alpha is {self.lora_alpha}; it must be above 0")
        if self.max_steps == 0 or self.max_steps < -1:
            raise MidblockError(f"max_steps is {self.max_steps}", hint="-1 leaves it to num_train_epochs")
        if not 0 <= self.lora_dropout < 1:
            raise MidblockError(f"lora_dropout is {self.lora_dropout}; it must lie in [0, 1)")

    def _check_together(self) -> None:
        if self.rank_budget is not None and self.match_parameters is not None:
            raise MidblockError("rank_budget and match_parameters exclude each other")
        if self.hub_model_id is not None and not self.push_to_hub:
            raise MidblockError("hub_model_id is about uploading", hint="leave it out, or --push-to-hub")
        for given in self._given():
            if given.startswith("anchor_") and self.anchor == "none":
                raise MidblockError(f"{given} is about an anchor, and there is none", hint="--anchor rpsft")
            if given == "kl_beta" and self.loss != "kl":
                raise MidblockError(f"the loss {self.loss} uses no kl_beta", hint="leave it out, or --loss kl")
            if given == "iw_temperature" and not self.loss.startswith("iw"):
                raise MidblockError(f"the loss {self.loss} uses no iw_temperature", hint="leave it out, or --loss iw")
        resolve_k(self.anchor_k, 1, 1)
        if self.method == "full":
            if about := [name for name in self._given() if name in ONLY_LORA]:
                raise MidblockError(f"{about[0]} is about adapters", hint="leave it out, or --method lora")
        elif self.also:
            raise MidblockError("`also` trains weights themselves", hint="--method full")

    def _given(self) -> list[str]:
        """Options that differ from what is taken without them."""
        return [each.name for each in fields(self) if getattr(self, each.name) != each.default]

    @classmethod
    def of(cls, options: dict[str, Any]) -> TuneSettings:
        """Build the settings from keyword arguments.

        Raises:
            MidblockError: an unknown keyword; the nearest is named.
        """
        return from_options(cls, options)
