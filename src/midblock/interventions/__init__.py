"""Change the forward pass or the weights, and see what breaks: probe, swap, merge, steer."""

from midblock.interventions.catalogue import INTERVENTIONS as INTERVENTIONS
from midblock.interventions.directions import Direction as Direction
from midblock.interventions.directions import Directions as Directions
from midblock.interventions.directions import estimate_directions as estimate_directions
from midblock.interventions.exchange import exchanged as exchanged
from midblock.interventions.merge import merge as merge
from midblock.interventions.merge_settings import MergeSettings as MergeSettings
from midblock.interventions.probe import probe as probe
from midblock.interventions.probe_settings import ProbeSettings as ProbeSettings
from midblock.interventions.steer import steer as steer
from midblock.interventions.steer_settings import SteerSettings as SteerSettings
from midblock.interventions.steering import steered as steered
from midblock.interventions.swap import swap as swap
from midblock.interventions.swap_settings import SwapSettings as SwapSettings
