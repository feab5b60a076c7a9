"""`midblock merge`: parse, call `midblock.merge`, draw the page, print what was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from cyclopts import Parameter

from midblock.base.plural import counted
from midblock.checkpoints import ModelReference
from midblock.cli.life import Flat, carry_out, tell
from midblock.interventions import MergeSettings
from midblock.interventions import merge as run_merge
from midblock.runs.where import Where


def merge(
    base: str,
    tuned: str,
    *,
    alphas: Annotated[str, Parameter(allow_leading_hyphen=True)],
    settings: Annotated[MergeSettings | None, Flat] = None,
    where: Annotated[Where | None, Flat] = None,
    json: bool = False,
) -> None:
    """Mix a base and a model tuned from it, block by block, into a new checkpoint.

    The checkpoint stands in the run folder. With --resume a finished merge of the same settings is left as it is.

    Args:
        base: model before tuning: `org/name[@rev]`, a folder, a `.gguf` file or `builtin:smollm2-135m-instruct`.
        tuned: the model tuned from it: the same, or a PEFT adapter folder.
        alphas: how much of the tuned model: one number, one for each block, or fewer, like `0,0.5,1`, spread over them.
        json: print the summary as JSON on standard output, for programs.
    """
    act = partial(run_merge, base, tuned, alphas, **asdict(settings or MergeSettings()))
    filled, _ = carry_out("merge", [ModelReference.parse(tuned).label], where, act)

    def told(summary: Mapping[str, Any]) -> list[str]:
        copied, size = summary["copied"], summary["bytes"] / 1e6
        return [
            f"{counted(summary['tensors'], 'tensor')}, {copied} copied bit for bit, {size:.1f} MB.",
            f"Written: {filled.path}",
        ]

    tell(filled, as_json=json, told=told)
