"""Pure functions of finished statistics; `analyze` is the one function that takes models."""

from midblock.metrics.catalogue import METRICS as METRICS
from midblock.metrics.catalogue import Metric as Metric
