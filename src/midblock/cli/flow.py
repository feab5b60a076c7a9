"""`midblock flow`: parse, call `midblock.flow`, draw the page, print where gradients and weight change sit."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated

from midblock.checkpoints import LoadSettings, ModelReference
from midblock.cli.life import Flat, carry_out, tell
from midblock.runs.where import Where
from midblock.tuning import FlowSettings
from midblock.tuning import flow as run_flow


def flow(
    base: str,
    *,
    data: str,
    settings: Annotated[FlowSettings | None, Flat] = None,
    loading: Annotated[LoadSettings | None, Flat] = None,
    where: Annotated[Where | None, Flat] = None,
    json: bool = False,
) -> None:
    """Take the first steps of fine-tuning and measure, by depth, gradients, how far they agree, and weight change.

    Args:
        base: the model: `org/name[@rev]`, a folder, a `.gguf` file or `builtin:smollm2-135m-instruct`.
        data: examples with completions: `builtin:gsm_symbolic`, `gsm8k`, a hub set, a `.jsonl`, `.json` or `.parquet`.
        json: print the summary as JSON on standard output, for programs.
    """
    options = {**asdict(settings or FlowSettings()), **asdict(loading or LoadSettings())}
    act = partial(run_flow, base, data, **options)
    filled, _ = carry_out("flow", [ModelReference.parse(base).label], where, act)
    tell(filled, as_json=json)
