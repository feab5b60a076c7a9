"""Pure functions of finished statistics; `analyze` is the one function that takes models."""

from midblock.metrics.analysis import analyze as analyze
from midblock.metrics.catalogue import METRICS as METRICS
from midblock.metrics.correlation import Correlations as Correlations
from midblock.metrics.correlation import correlate as correlate
from midblock.metrics.correlation import write_correlations as write_correlations
from midblock.metrics.metric import NULL as NULL
from midblock.metrics.metric import PRECISION_FLOOR as PRECISION_FLOOR
from midblock.metrics.metric import SPLIT_FLOOR as SPLIT_FLOOR
from midblock.metrics.metric import Metric as Metric
from midblock.metrics.settings import AnalysisSettings as AnalysisSettings
from midblock.metrics.summary import summarize as summarize
