"""What an analysis can be asked for: every option once, with its meaning, unit and the paper's value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from midblock.analysis.control_words import read_controls
from midblock.base import MidblockError, unknown
from midblock.metrics.catalogue import choose
from midblock.metrics.metric import NO_SINKS
from midblock.metrics.sinks import read_rule
from midblock.runs.reading import ReadingSettings, check_least, check_most, check_reading

LEAST_PROMPTS = 4  # debiased CKA divides by n − 3
MOST_PROMPTS = 1_000_000  # of all samples together, where there are several
MOST_POSITIONS = 4096  # each is a row of the whole vocabulary at every layer
TOKEN_SETS = {"all": "", "no-sinks": NO_SINKS}
MOST_SEEDS = 100  # each is measured on its own, and draws what those before it have drawn once more


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings(ReadingSettings):
    """Options of `midblock analyze` that decide its numbers.

    Raises:
        MidblockError: a value out of range or an unknown name.
    """

    FOLLOWED_BY: ClassVar[Mapping[str, Sequence[str]]] = {
        "num_samples": ("num_token_samples", "seeds"),
        "region": ("tokens", "sinks", "metrics", "layers"),
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

    tokens: str = "all,no-sinks"
    """Tokens that metrics are over: `all` (P1), `no-sinks` (rows METRIC.no_sinks), or both, comma-separated."""

    sinks: str = "10"
    """A token is a sink where its norm is above so many times its prompt's median; `first`: the first token is one."""

    metrics: str = "standard"
    """`standard`, `p1`, `all`, or names, comma-separated."""

    layers: str = "all"
    """Blocks to measure: `01100`, `6-17`, `6,7,9-12`, `0.2-0.8` or `all`."""

    controls: str = ""
    """`random`, `equal-step` or both: what another change of the same size does; each draw is one more pass."""

    control_draws: int = 3
    """Random changes drawn."""

    general: str | None = None
    """Dataset of texts that the tuning was not about, on which both models' predictions are compared too."""

    answer_positions: int = 16
    """Positions of each prompt at which KL(base‖tuned) is taken: of the answer, and of each general text."""

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
        check_least(self, num_token_samples=0, lens_positions=1, answer_positions=1, subspace_rank=1, seeds=1)
        check_most(self, seeds=MOST_SEEDS, lens_positions=MOST_POSITIONS, answer_positions=MOST_POSITIONS)
        check_least(self, control_draws=2)
        check_most(self, control_draws=MOST_SEEDS)
        read_controls(self.controls, self.control_draws)
        read_rule(self.sinks)
        self.token_sets()
        if self.seeds > 1 and self.seeds * self.num_samples > MOST_PROMPTS:
            what = f"{self.seeds} samples of {self.num_samples} prompts are more than {MOST_PROMPTS:,} prompts"
            raise MidblockError(what, hint="lower --seeds or --num-samples")
        if not 0 < self.token_dropout < 1:
            raise MidblockError(f"token_dropout is {self.token_dropout}; it must lie between 0 and 1")

    def token_sets(self) -> tuple[str, ...]:
        """Which tokens metrics are over, as suffixes of their names: "" for all, ".no_sinks".

        Raises:
            MidblockError: another word.
        """
        words = [word.strip() for word in self.tokens.split(",")]
        for word in words:
            if word not in TOKEN_SETS:
                raise unknown("set of tokens", word, TOKEN_SETS)
        return tuple(suffix for word, suffix in TOKEN_SETS.items() if word in words)
