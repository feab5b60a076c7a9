"""`midblock analyze`: parse, call `midblock.analyze`, draw the page, print what was found."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from typing import Annotated

from midblock.analysis import AnalysisSettings
from midblock.analysis import analyze as run_analysis
from midblock.analysis.control_words import cost_of, read_controls
from midblock.analysis.gate.ahead import check_askable, check_names
from midblock.analysis.gate.conditions import read_conditions
from midblock.checkpoints import LoadSettings, load_pair
from midblock.cli.gate import checked, stop_unless_passed
from midblock.cli.life import Flat, carry_out, tell
from midblock.cli.table import detectable_lines, show_profile
from midblock.runs.processes import main_process
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
    fail_on: str | None = None,
    json: bool = False,
) -> None:
    """Measure, layer by layer, what tuning did to representations and weights, and write a run folder with a report.

    Args:
        base: model before tuning: `org/name[@rev]`, a folder, a `.gguf` file or `builtin:smollm2-135m-instruct`.
        tuned: one or several models tuned from it: the same, PEFT adapter folders, or `BASE+CARRIER`.
        data: prompts: `builtin:gsm_symbolic`, `gsm8k`, a hub set, a `.jsonl`, `.json` or `.parquet` file.
        fail_on: what the run must not show, like `kl_answers>0.5,change_own[0-5]>>0.05` (`>>`: all of the interval is
            above); where it does, exit code 3. `gate.json` and `gate.xml` (JUnit) tell of it.
        json: print the summary as JSON on standard output, for programs.
    """
    conditions = read_conditions(fail_on) if fail_on is not None else ()
    check_names(conditions)
    pair, asked = load_pair(base, *tuned, **asdict(loading or LoadSettings())), settings or AnalysisSettings()
    check_askable(conditions, asked, pair)
    cost = "" if asked.weights_only else cost_of(read_controls(asked.controls, asked.control_draws))
    if cost and main_process():
        print(cost, file=sys.stderr)
    act = partial(run_analysis, pair, data, **asdict(asked))
    filled, table = carry_out("analyze", [variant.name for variant in pair.tuned], where, act)
    gate = checked(filled.path, conditions)
    more = {"gate": gate.as_record()} if gate else {}
    tell(filled, as_json=json, show=partial(show_profile, table), told=detectable_lines, more=more)
    stop_unless_passed(gate)
