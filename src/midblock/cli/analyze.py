"""`midblock analyze`: parse, call `midblock.analyze`, draw the page, print what was found."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from midblock.base import watched
from midblock.checkpoints import LoadSettings, load_pair
from midblock.cli.output import OutputSettings
from midblock.cli.table import print_profile
from midblock.metrics import AnalysisSettings
from midblock.metrics import analyze as run_analysis
from midblock.metrics.analysis import DEFAULT_DATA
from midblock.report import write_report

Flat = Parameter(name="*")


def analyze(
    base: str,
    tuned: tuple[str, ...],
    *,
    data: str = DEFAULT_DATA,
    settings: Annotated[AnalysisSettings | None, Flat] = None,
    loading: Annotated[LoadSettings | None, Flat] = None,
    output: Annotated[OutputSettings | None, Flat] = None,
) -> None:
    """Measure, layer by layer, what tuning did to representations and weights, and write a run folder with a report.

    Args:
        base: model before tuning: `org/name[@rev]`, a folder, a `.gguf` file or `builtin:smollm2-135m-instruct`.
        tuned: one or several models tuned from it: the same, or PEFT adapter folders.
        data: prompts: `builtin:gsm_symbolic`, `gsm8k`, a hub set, a `.jsonl` or a `.parquet` file.
    """
    settings, loading, output = settings or AnalysisSettings(), loading or LoadSettings(), output or OutputSettings()
    pair = load_pair(base, *tuned, **asdict(loading))
    folder = output.folder("analyze", [variant.name for variant in pair.tuned])
    with watched() as progress:
        table = run_analysis(
            pair,
            data,
            output_dir=folder,
            resume=output.resume,
            overwrite=output.overwrite,
            progress=progress,
            command=" ".join(["midblock", *sys.argv[1:]]),
            **asdict(settings),
        )
    page = write_report(folder)
    print_profile(table, folder, page, as_json=output.json)
