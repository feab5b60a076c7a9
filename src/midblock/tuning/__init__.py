"""Change a model's weights: for now the short full-parameter SFT that the demo needs."""

from midblock.tuning.full import FullTuning as FullTuning
from midblock.tuning.full import tune_fully as tune_fully
