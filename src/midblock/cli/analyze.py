"""`midblock analyze`: parse, call `midblock.analyze`, draw the page, print what was found."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated

from midblock.analysis import AnalysisSettings
from midblock.analysis import analyze as run_analysis
from midblock.checkpoints import LoadSettings, load_pair
from midblock.cli.life import Flat, carry_out, tell
from midblock.cli.table import detectable_lines, show_profile
from midblock.runs.reading import DEFAULT_DATA
from midblock.runs.where import Where


def analyze(
    base: str,
    tuned: tuple[str, ...],
    *,
    data: str = DEFAULT_DATA,
    settings: Annotated[AnalysisSettings | None, Flat] = None,
    loading: Annotated[LoadSettings | None, Flat] = None,
    where: Annotated[Where | None, Flat] = None,
    json: bool = False,
) -> None:
    """Measure, layer by layer, what tuning did to representations and weights, and write a run folder with a report.

    Args:
        base: model before tuning: `org/name[@rev]`, a folder, a `.gguf` file or `builtin:smollm2-135m-instruct`.
        tuned: one or several models tuned from it: the same, or PEFT adapter folders.
        data: prompts: `builtin:gsm_symbolic`, `gsm8k`, a hub set, a `.jsonl` or a `.parquet` file.
        json: print the summary as JSON on standard output, for programs.
    """
    pair = load_pair(base, *tuned, **asdict(loading or LoadSettings()))
    act = partial(run_analysis, pair, data, **asdict(settings or AnalysisSettings()))
    filled, table = carry_out("analyze", [variant.name for variant in pair.tuned], where, act)
    tell(filled, as_json=json, show=partial(show_profile, table), told=detectable_lines)
