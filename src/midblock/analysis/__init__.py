"""The verb `analyze`: one pass over models and weights, every number with its interval, and the reading of it all."""

from midblock.analysis.analyze import analyze as analyze
from midblock.analysis.gate.check import check_gate as check_gate
from midblock.analysis.settings import AnalysisSettings as AnalysisSettings
from midblock.analysis.summary import summarize as summarize
