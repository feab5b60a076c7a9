"""Read-only on results: a run folder becomes one self-contained page and figures for papers."""

from midblock.report.write import write_report as write_report
