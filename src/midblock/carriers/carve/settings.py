"""What a carving with its necessity table can be asked for: the options of carving, and those of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from midblock.base import MidblockError, unknown
from midblock.base.options import check_sizes
from midblock.data import BEHAVIOURS
from midblock.evaluation import TaskSettings
from midblock.runs.reading import check_least, check_most
from midblock.runs.where import Hidden
from midblock.tuning import CarveSettings

FEWEST = 2  # prompts
MOST_DRAWS = 100


@dataclass(frozen=True, kw_only=True)
class NecessitySettings(CarveSettings):
    """Options of `midblock carve` that decide its numbers.

    Raises:
        MidblockError: an unknown name, a value out of range, or options that exclude each other.
    """

    FOLLOWED_BY: ClassVar[Mapping[str, Sequence[str]]] = CarveSettings.FOLLOWED_BY

    tuned: Annotated[str, Hidden] = ""
    """The tuned model whose change is carved: a model reference; the command's second argument."""

    behaviour: str | None = None
    """What tuning taught: `fixed_response`, `style` or `refusal`; named by the data (`style:DATA`) when left out."""

    test_samples: int = 200
    """Held-out prompts on which the behaviour is looked for."""

    max_new_tokens: int = 48
    """Tokens at which an answer that does not end is cut."""

    batch_tokens: int = 4096
    """Tokens a batch may hold, padding and answers included."""

    random_draws: int = 3
    """Random carriers of the same size in every group of channels, which the carrier is held against."""

    rivals: bool = True
    """Hold it against the largest entries of the whole change, and against its truncated SVD, of as many bytes, too."""

    ability: str | None = "chain_sum"
    """A task that tuning was not about; `none` for none."""

    ability_samples: int = 100
    """Items of it."""

    general: str = "builtin:elsewhere"
    """Dataset of texts that have nothing to do with the behaviour: predictions there are held against the base's."""

    general_samples: int = 64
    """Prompts of it."""

    write_model: bool = False
    """Write the base with the carrier in it, too, as a checkpoint (`model/`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self)
        check_least(self, test_samples=FEWEST, max_new_tokens=1, batch_tokens=1, random_draws=0, ability_samples=FEWEST,
                    general_samples=FEWEST)  # fmt: skip
        check_most(self, random_draws=MOST_DRAWS)
        if self.behaviour is not None and self.behaviour not in BEHAVIOURS:
            raise unknown("behaviour", self.behaviour, BEHAVIOURS)
        if self.ability is not None and not self.ability.strip():
            raise MidblockError("the task of general ability is empty", hint="chain_sum, or none")

    @property
    def asking(self) -> TaskSettings:
        """How models are asked."""
        return TaskSettings(max_new_tokens=self.max_new_tokens, batch_tokens=self.batch_tokens)
