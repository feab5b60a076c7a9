"""Change the forward pass or the weights, and see what breaks: probe, swap, merge, steer."""

from midblock.interventions.catalogue import INTERVENTIONS as INTERVENTIONS
from midblock.interventions.merge import merge as merge
from midblock.interventions.merge_settings import MergeSettings as MergeSettings
from midblock.interventions.probe import probe as probe
from midblock.interventions.probe_settings import ProbeSettings as ProbeSettings
from midblock.interventions.swap import swap as swap
from midblock.interventions.swap_settings import SwapSettings as SwapSettings
