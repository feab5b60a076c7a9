"""Change a model's weights: at which depth, by which method, under which loss, holding on to what."""

from midblock.tuning.export.export import export as export
from midblock.tuning.flow.flow import flow as flow
from midblock.tuning.flow.settings import FlowSettings as FlowSettings
from midblock.tuning.loop.carve_settings import CarveSettings as CarveSettings
from midblock.tuning.loop.carve_weights import Carved as Carved
from midblock.tuning.loop.carve_weights import carve_weights as carve_weights
from midblock.tuning.loop.outputs import Artifact as Artifact
from midblock.tuning.loop.tune import tune as tune
from midblock.tuning.loop.tune_settings import TuneSettings as TuneSettings
from midblock.tuning.losses import LOSSES as LOSSES
from midblock.tuning.place.methods import METHODS as METHODS
