"""What training can be asked for: every option once, with its unit and the papers' symbol or value.

Options stand in groups. `CourseSettings` has those of every verb that trains; a verb adds its own, and gives another
default (never another meaning) by declaring an option anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from midblock.runs.reading import DataSettings
from midblock.tuning.losses import Objective

MASKS_ONLY = ("sft", "kl")
SPARSITY = ("published", "normalized")
OUTSIDE = ("embedding", "head", "final_norm", "norms")
ANCHORS = ("none", "rpsft")
SCOPES = ("block", "subspace")
PREFIX_CACHE = ("auto", "on", "off")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where in the model to train, and how many parameters."""

    layers: str = "all"
    """Blocks to tune: `01100`, `0,42,42,0,0` (a LoRA rank per segment), `6-17`, `0.2-0.8`, `all` or `auto:RUN`."""

    method: str = "lora"
    """`lora` (adapters, PEFT) or `full` (the chosen blocks' own weights)."""

    target_modules: str | None = None
    """Projections in a chosen block, by role: `attention` (q, k, v, o as in P1), `mlp`, `experts` (those of a mixture
    alone), `all`, or roles with commas (`q_proj,v_proj`). Left out: `attention` for adapters, every weight of the block
    with `full`."""

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
class Schedule(DataSettings):
    """Data order, optimiser and steps, named as transformers' TrainingArguments name them."""

    split: str | None = None
    """Split of the dataset; `train` when left out."""

    num_samples: int | None = None
    """Examples drawn from the dataset; all of them when left out."""

    max_length: int = 1024
    """Tokens an example is cut at; how many were cut is said before training."""

    seed: int = 0
    """Decides the examples drawn, their order, the adapters' start and dropout."""

    learning_rate: float = 1e-4
    """Peak learning rate (P1: 1e-4 for 1B and 7B; P2, full: 1e-6)."""

    lr_by_depth: str | None = None
    """Factors of the learning rate by depth. One number: by how much it is multiplied from a block to the one below
    (0.9 keeps the last block's and lowers the others). Several, bottom first and spread over the blocks as a merge's
    alphas are: `0.1,1,1`."""

    per_device_train_batch_size: int = 4
    """Examples in a forward pass on each device."""

    gradient_accumulation_steps: int = 1
    """Forward passes an optimiser step gathers."""

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

    load_in_4bit: bool = False
    """QLoRA: the frozen weights in 4 bits (needs a GPU and bitsandbytes)."""

    report_to: tuple[str, ...] = ()
    """Trackers, as in transformers: `wandb`, `tensorboard`, `trackio`, …"""


@dataclass(frozen=True, kw_only=True)
class CourseSettings(Schedule, Anchoring, Objective, Placement):
    """Options of every verb that trains a model."""


@dataclass(frozen=True, kw_only=True)
class Carving:
    """How a model's change is pressed into few channels (P3, LCDD)."""

    tuned: str = ""
    """The tuned model whose change is carved: a model reference."""

    masks_only: str | None = None
    """Train masks alone, weights frozen, as post-hoc controls: `sft` by the loss on the data, `kl` by KL(tuned‖masked).
    Left out, masks and weights are trained together."""

    loss_budget: float = 0.3
    """ρ: how much larger than at the end of the warm-up the loss may become, as a share (P3: 0.3)."""

    budget_floor: float = 0.1
    """Nats per target token that this share is taken of at least: what was learned by heart has next to no loss, and a
    share of that would leave no room."""

    sparsity_lambda: float = 0.01
    """λ₀: weight of the masks' sparsity at the start (P3: 0.01)."""

    lambda_max: float = 0.5
    """λ_max: its largest value (P3: 0.5, for a style 0.3)."""

    dual_rate: float = 0.1
    """η: how fast λ follows the loss (P3: 0.1)."""

    violation_clip: float = 0.5
    """How much of the budget a loss beyond it counts for at most in a step (P3: 0.5)."""

    mask_learning_rate: float = 0.1
    """Learning rate of the masks' logits θ, by gradient descent without momentum (P3: 0.1)."""

    mask_warmup_steps: int = 300
    """t_w: steps over which the sparsity rises, and after which the budget is set (P3: 300)."""

    sparsity: str = "normalized"
    """`normalized`: the mean over masks is what λ weighs; `published`: their sum (P3), beside which the loss hardly
    decides of a single mask."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How long the loop goes on, and what it keeps on the way: `tune` offers these as options, `flow` decides them."""

    num_train_epochs: float = 1.0
    """Passes over the examples."""

    prefix_cache: str = "auto"
    """Keep what the frozen blocks below the lowest tuned one put out on disk and read it again: `on`, `off`, or `auto`
    (with more than one epoch, where it is exact)."""

    shard: bool = False
    """Split weights, gradients and optimiser state over the processes of a `torchrun` (torch's FSDP2)."""

    logging_steps: int = 1
    """Optimiser steps between lines of `log.jsonl`."""

    save_steps: int = 100
    """Optimiser steps between checkpoints that `--resume` goes on from; 0 for none."""

    @property
    def saves(self) -> bool:
        """Whether checkpoints are written; of a sharded model none can be."""
        return self.save_steps > 0 and not self.shard
