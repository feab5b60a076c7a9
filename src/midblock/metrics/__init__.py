"""Pure functions of finished statistics: METRICS is the one table of what they are called and computed from."""

from midblock.metrics.catalogue import METRICS as METRICS
from midblock.metrics.correlation import Correlations as Correlations
from midblock.metrics.correlation import correlate as correlate
from midblock.metrics.correlation import write_correlations as write_correlations
from midblock.metrics.metric import NULL as NULL
from midblock.metrics.metric import PRECISION_FLOOR as PRECISION_FLOOR
from midblock.metrics.metric import SPLIT_FLOOR as SPLIT_FLOOR
from midblock.metrics.metric import Metric as Metric
