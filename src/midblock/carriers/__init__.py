"""Carriers: sparse parts of a fine-tuning's change, what rivals them, and what erases what they carry.

`carve/` presses the change into few channels and asks whether they are necessary and sufficient; `erase/` reverses a
behaviour without touching weights. What a carrier is on disk and how it is applied lies in `checkpoints`.
"""

from midblock.carriers.carve.carve import Carving as Carving
from midblock.carriers.carve.carve import carve as carve
from midblock.carriers.carve.settings import NecessitySettings as NecessitySettings
from midblock.carriers.erase.erase import erase as erase
from midblock.carriers.erase.settings import EraseSettings as EraseSettings
