"""Change the forward pass or the weights, and see what breaks: probe, swap, merge, steer."""

from midblock.interventions.catalogue import INTERVENTIONS as INTERVENTIONS
from midblock.interventions.merge.merge import merge as merge
from midblock.interventions.merge.settings import MergeSettings as MergeSettings
from midblock.interventions.probe.probe import probe as probe
from midblock.interventions.probe.settings import ProbeSettings as ProbeSettings
from midblock.interventions.steer.directions import Direction as Direction
from midblock.interventions.steer.directions import Directions as Directions
from midblock.interventions.steer.directions import estimate_directions as estimate_directions
from midblock.interventions.steer.settings import SteerSettings as SteerSettings
from midblock.interventions.steer.steer import steer as steer
from midblock.interventions.steer.steering import steered as steered
from midblock.interventions.swap.exchange import exchanged as exchanged
from midblock.interventions.swap.settings import SwapSettings as SwapSettings
from midblock.interventions.swap.swap import swap as swap
