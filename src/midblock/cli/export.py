"""`midblock export`: parse, call `midblock.export`, print what was written."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from midblock.base.quoting import printable
from midblock.tuning.export.export import run_export


def export(
    source: str,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    to: str = "merged",
    base: str | None = None,
    dtype: str = "auto",
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Turn a tuned adapter into a checkpoint, an equal-rank adapter, or other tools' settings.

    Args:
        source: a PEFT adapter folder, a run folder of `midblock tune`, or an adapter's name on the hub.
        output: folder to write; for `lora-config`, `axolotl` and `trl` a name with a suffix is the file itself.
        to: `merged` (a whole checkpoint), `equal-rank` (an adapter for vLLM and llama.cpp), `lora-config` (PEFT),
            `axolotl` or `trl`.
        base: the base model, where the adapter names none or it has moved.
        dtype: of merged weights: `float32`, `bfloat16`, `float16`; `auto` keeps the base's.
        overwrite: replace what an earlier export left there.
        json: print what was written as JSON, for programs.
    """
    made = run_export(source, output, to, base, overwrite, dtype)
    if json:
        print(json_format.dumps({**asdict(made), "path": str(made.path)}, indent=2))
        return
    for note in made.notes:
        print(printable(f"Note: {note}."))
    if made.error is not None:
        print(f"Checked: {made.measured}: {made.error:.1e}.")
    print(printable(f"Written: {made.path}"))
