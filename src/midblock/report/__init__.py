"""Read-only on results: a run folder becomes one self-contained page and figures for papers."""

from midblock.report.page import write_report as write_report
