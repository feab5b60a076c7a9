"""`midblock flow`: parse, call `midblock.flow`, draw the page, print where gradients and weight change sit."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from midblock.base import Silent, watched
from midblock.checkpoints import LoadSettings, ModelReference
from midblock.cli.output import OutputSettings, print_run
from midblock.tuning import FlowSettings
from midblock.tuning import flow as run_flow
from midblock.tuning.arguments import main_process

Flat = Parameter(name="*")


def flow(
    base: str,
    *,
    data: str,
    settings: Annotated[FlowSettings | None, Flat] = None,
    loading: Annotated[LoadSettings | None, Flat] = None,
    output: Annotated[OutputSettings | None, Flat] = None,
) -> None:
    """Take the first steps of fine-tuning and measure, by depth, gradients, how far they agree, and weight change.

    Args:
        base: the model: `org/name[@rev]`, a folder, a `.gguf` file or `builtin:smollm2-135m-instruct`.
        data: examples with completions: `builtin:gsm_symbolic`, `gsm8k`, a hub set, a `.jsonl` or a `.parquet` file.
    """
    settings, loading, output = settings or FlowSettings(), loading or LoadSettings(), output or OutputSettings()
    folder = (output.output_dir or Path("runs") / f"flow-{ModelReference.parse(base).label}").expanduser()
    options = asdict(settings)
    main = main_process()
    with watched() as progress:
        run_flow(
            base,
            data,
            options.pop("layers"),
            output_dir=folder,
            resume=output.resume,
            overwrite=output.overwrite,
            progress=progress if main else Silent(),
            command=" ".join(["midblock", *sys.argv[1:]]),
            **options,
            **asdict(loading),
        )
    if main:
        print_run(folder, Console(), as_json=output.json)
