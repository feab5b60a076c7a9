"""Change a model's weights: at which depth, by which method, under which loss, holding on to what."""

from midblock.tuning.export import export as export
from midblock.tuning.flow import flow as flow
from midblock.tuning.flow_settings import FlowSettings as FlowSettings
from midblock.tuning.losses import LOSSES as LOSSES
from midblock.tuning.outputs import Artifact as Artifact
from midblock.tuning.tune import tune as tune
from midblock.tuning.tune_settings import TuneSettings as TuneSettings
