"""What an analysis can be asked for: every option once, with its meaning, unit and the paper's value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from midblock.base import MidblockError
from midblock.metrics.catalogue import choose
from midblock.runs.reading import ReadingSettings, check_least, check_most, check_reading

LEAST_PROMPTS = 4  # debiased CKA divides by n − 3
MOST_PROMPTS = 1_000_000  # of all samples together, where there are several
MOST_POSITIONS = 4096  # each is a row of the whole vocabulary at every layer
MOST_SEEDS = 100  # each is measured on its own, and draws what those before it have drawn once more


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings(ReadingSettings):
    """Options of `midblock analyze` that decide its numbers.

    Raises:
        MidblockError: a value out of range or an unknown name.
    """

    FOLLOWED_BY: ClassVar[Mapping[str, Sequence[str]]] = {
        "num_samples": ("num_token_samples", "seeds"),
        "region": ("metrics", "layers"),
        "weights_only": ("seed",),
    }

    num_samples: int = 200
    """Prompts whose pooled states are compared (P1: 200)."""

    num_token_samples: int = 50
    """Prompts among them for token-level metrics and the logit lens, which cost more (P1: 50)."""

    seeds: int = 1
    """Disjoint samples of prompts that the states are measured on; the spread over them is shown."""

    max_length: int = 128
    """Tokens a prompt is cut at (P1: 128)."""

    region: str = "all"
    """Tokens that count: `all`, `prompt` or `answer` (P1: all, gold answer included)."""

    metrics: str = "standard"
    """`standard`, `p1`, `all`, or names, comma-separated."""

    layers: str = "all"
    """Blocks to measure: `01100`, `6-17`, `6,7,9-12`, `0.2-0.8` or `all`."""

    lens_positions: int = 4
    """Positions of each prompt read by the logit lens."""

    token_dropout: float = 0.15
    """Share of tokens dropped in an augmented view (`--metrics all`)."""

    subspace_rank: int = 64
    """k: singular directions compared by rotation and drift of weights, at most half of what a matrix has."""

    precision_floor: bool = True
    """Run the base in bfloat16 and float32 on the token-level prompts, to see what rounding alone changes."""

    exact_spectra: bool = False
    """Compute whole spectra of weights wider than 2,048 too (slow), instead of randomised leading ones."""

    weights: bool = True
    """Compare the weights too, where both models are files."""

    weights_only: bool = False
    """Compare weights and nothing else; no model is built."""

    def __post_init__(self) -> None:
        choose(self.metrics)
        check_reading(self, fewest=LEAST_PROMPTS)
        check_least(self, num_token_samples=0, lens_positions=1, subspace_rank=1, seeds=1)
        check_most(self, seeds=MOST_SEEDS, lens_positions=MOST_POSITIONS)
        if self.seeds > 1 and self.seeds * self.num_samples > MOST_PROMPTS:
            what = f"{self.seeds} samples of {self.num_samples} prompts are more than {MOST_PROMPTS:,} prompts"
            raise MidblockError(what, hint="lower --seeds or --num-samples")
        if not 0 < self.token_dropout < 1:
            raise MidblockError(f"token_dropout is {self.token_dropout}; it must lie between 0 and 1")
