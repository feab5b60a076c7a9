"""What an analysis can be asked for: every option once, with its meaning, unit and the paper's value."""

from __future__ import annotations

from dataclasses import dataclass

from midblock.base import MidblockError, from_options, unknown
from midblock.data import REGIONS
from midblock.metrics.catalogue import choose


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings:
    """Options of `midblock analyze` that decide its numbers.

    Raises:
        MidblockError: a value out of range or an unknown name.
    """

    split: str | None = None
    """Split of the dataset; its usual evaluation split when left out."""

    num_samples: int = 200
    """Prompts whose pooled states are compared (P1: 200)."""

    num_token_samples: int = 50
    """Prompts among them for token-level metrics and the logit lens, which cost more (P1: 50)."""

    seeds: int = 1
    """Disjoint samples of prompts that the states are measured on; the spread over them is shown."""

    max_length: int = 128
    """Tokens a prompt is cut at (P1: 128)."""

    template: str = "raw"
    """`raw` text, `chat` for the tokenizer's chat template, or a .jinja file."""

    region: str = "all"
    """Tokens that count: `all`, `prompt` or `answer` (P1: all, gold answer included)."""

    metrics: str = "standard"
    """`standard`, `p1`, `all`, or names, comma-separated."""

    layers: str = "all"
    """Blocks to measure: `01100`, `6-17`, `6,7,9-12`, `0.2-0.8` or `all`."""

    batch_tokens: int = 1024
    """Tokens a batch may hold, padding included."""

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

    seed: int = 0
    """Decides which prompts are drawn and every resampling."""

    def __post_init__(self) -> None:
        choose(self.metrics)
        if self.region not in REGIONS:
            raise unknown("region", self.region, REGIONS)
        least = {"num_samples": 4, "num_token_samples": 0, "max_length": 3, "batch_tokens": 1, "lens_positions": 1}
        for name, low in {**least, "subspace_rank": 1, "seeds": 1}.items():
            if getattr(self, name) < low:
                raise MidblockError(f"{name} is {getattr(self, name)}; it must be {low} or more")
        if not 0 < self.token_dropout < 1:
            raise MidblockError(f"token_dropout is {self.token_dropout}; it must lie between 0 and 1")

    @classmethod
    def of(cls, options: dict[str, object]) -> AnalysisSettings:
        """Build the settings from keyword arguments.

        Raises:
            MidblockError: an unknown keyword; the nearest is named.
        """
        return from_options(cls, options)
