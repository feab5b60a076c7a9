"""What erasing can be asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from midblock.base import MidblockError, unknown
from midblock.base.options import check_sizes
from midblock.carriers.erase.objective import Objective
from midblock.carriers.erase.training import TrainingSettings
from midblock.checkpoints.soft_prompt import POSITIONS, START
from midblock.data import BEHAVIOURS
from midblock.runs.reading import check_least

AUTO, CARRIER, RANDOM, ALL, NONE = "auto", "carrier", "random", "all", "none"
CHANNELS = (AUTO, CARRIER, RANDOM, ALL, NONE)
PUBLISHED = Objective()


@dataclass(frozen=True, kw_only=True)
class EraseSettings:
    """Options of `midblock erase` that decide its numbers.

    Raises:
        MidblockError: a value out of range or an unknown name.
    """

    behaviour: str | None = None
    """What tuning taught: `fixed_response`, `style` or `refusal`; named by the data (`style:DATA`) when left out."""

    other: str | None = "builtin:chain_sum"
    """Prompts on other topics than the data's, unlike the training's; none of them are asked when left empty."""

    channels: str = AUTO
    """Channels of blocks' outputs that are matched with the base's: those the `carrier` writes to, as many `random`
    others, `all`, `none` (predictions alone); `auto` is the carrier's where there is one, else all."""

    grid: bool = False
    """Train every cell: carrier and plain SFT, by the carrier's channels, random ones, and predictions alone."""

    starts: int = 3
    """Random soft prompts to start from; the best on held-out prompts is used, all are told."""

    soft_tokens: int = 20
    """n: vectors of a soft prompt."""

    position: str = START
    """`start`: before everything, as PEFT does; `after-bos`: behind the token that begins a text, by midblock alone."""

    matching: str = PUBLISHED.matching
    """States are matched `per-prompt`, or by their mean over a batch (`batch-mean`, as published)."""

    state_weight: float = PUBLISHED.states
    """w: weight of the states' mean square distance."""

    kl_weight: float = PUBLISHED.predictions
    """β: weight of KL(base‖tuned with the prompt)."""

    size_weight: float = PUBLISHED.size
    """γ: weight of the vectors' mean square norm."""

    radius: float = 1.0
    """r: length to which each vector is brought back."""

    last_tokens: int = 8
    """K: last positions of a prompt whose predictions are compared."""

    learning_rate: float = 3e-3
    """Of Adam."""

    max_grad_norm: float = 1.0
    """Where the gradient's norm is clipped."""

    batch_size: int = 16
    """Prompts of a step."""

    max_steps: int = 2000
    """Steps of each start."""

    eval_steps: int = 100
    """Steps between looks at the held-out prompts."""

    num_samples: int = 200
    """Prompts to train on."""

    num_validation_samples: int = 32
    """Held-out prompts by which the best soft prompt is chosen."""

    num_test_samples: int = 200
    """Prompts that behaviour and predictions are measured on; as many reworded ones, and on other topics."""

    general_samples: int = 64
    """Sums that tell whether the model can still do what it could; 0 asks none."""

    max_new_tokens: int = 32
    """Where an answer that does not end is cut."""

    max_length: int = 256
    """Tokens; longer prompts are left out."""

    template: str = "raw"
    """`raw` text, `chat` for the tokenizer's chat template, or a .jinja file."""

    relearn_steps: int = 40
    """Steps of tuning on the behaviour that tell how soon it comes back; 0 leaves that out."""

    relearn_every: int = 5
    """Steps between looks at whether it is back."""

    relearn_samples: int = 32
    """Test prompts that are looked at."""

    relearn_learning_rate: float = 2e-5
    """Of that tuning (AdamW, all weights)."""

    relearn_batch_size: int = 8
    """Examples of each of its steps."""

    seed: int = 0
    """Decides samples, starts, batches and every resampling."""

    def __post_init__(self) -> None:
        if self.behaviour is not None and self.behaviour not in BEHAVIOURS:
            raise unknown("behaviour", self.behaviour, BEHAVIOURS)
        if self.channels not in CHANNELS:
            raise unknown("choice of channels", self.channels, CHANNELS)
        if self.position not in POSITIONS:
            raise unknown("position", self.position, POSITIONS)
        check_sizes(self)
        counted = ("starts", "soft_tokens", "last_tokens", "batch_size", "max_steps", "eval_steps", "max_new_tokens")
        check_least(self, **dict.fromkeys((*counted, "relearn_every", "relearn_batch_size"), 1))
        check_least(self, **dict.fromkeys(("num_samples", "num_validation_samples", "num_test_samples"), 2))
        check_least(self, relearn_steps=0, relearn_samples=2, general_samples=0, max_length=3)
        self._check_amounts()
        _ = self.objective

    def _check_amounts(self) -> None:
        for name in ("radius", "learning_rate", "max_grad_norm", "relearn_learning_rate"):
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                raise MidblockError(f"{name} is {value}; it must be above 0")
        weights = ("state_weight", "kl_weight", "size_weight")
        for name in weights:
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise MidblockError(f"{name} is {value}; it must be 0 or more")
        if self.general_samples == 1:
            raise MidblockError("general_samples is 1; two at least can be compared", hint="0 asks none")
        if not self.state_weight and not self.kl_weight:
            raise MidblockError("state_weight and kl_weight are 0: nothing is left to train on")
        if not self.kl_weight and (self.grid or self.channels == NONE):
            raise MidblockError("kl_weight is 0: predictions alone cannot be matched", hint="--kl-weight 0.7")

    @property
    def named(self) -> str:
        """The behaviour.

        Raises:
            MidblockError: none is named.
        """
        if self.behaviour is None:
            raise MidblockError("no behaviour is named", hint=f"--behaviour {', '.join(BEHAVIOURS)}")
        return self.behaviour

    @property
    def objective(self) -> Objective:
        """J."""
        return Objective(self.state_weight, self.kl_weight, self.size_weight, self.matching)

    @property
    def training(self) -> TrainingSettings:
        """How soft prompts are trained."""
        return TrainingSettings(
            objective=self.objective,
            tokens=self.soft_tokens,
            radius=self.radius,
            learning_rate=self.learning_rate,
            max_grad_norm=self.max_grad_norm,
            batch=self.batch_size,
            steps=self.max_steps,
            every=self.eval_steps,
            last=self.last_tokens,
            position=self.position,
            seed=self.seed,
        )
