"""`midblock tune`: parse, show the plan, call `midblock.tune`, draw the page, print how it went."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from midblock.base.plural import blocks_named, counted
from midblock.base.quoting import printable
from midblock.checkpoints import LoadSettings, ModelReference
from midblock.cli.fitting import print_whole
from midblock.cli.life import Flat, carry_out, tell
from midblock.runs.where import Where
from midblock.tuning import TuneSettings
from midblock.tuning import tune as run_tuning

PURPOSES = {
    "weights": "weights", "gradients": "gradients", "optimizer": "optimiser", "activations": "activations",
    "logits": "logits", "anchor": "anchor",
}  # fmt: skip


def tune(
    base: str,
    *,
    data: str,
    settings: Annotated[TuneSettings | None, Flat] = None,
    loading: Annotated[LoadSettings | None, Flat] = None,
    where: Annotated[Where | None, Flat] = None,
    json: bool = False,
) -> None:
    """Fine-tune chosen blocks of a model and write an adapter or a checkpoint, with its log and a report.

    Args:
        base: the model: `org/name[@rev]`, a folder, a `.gguf` file or `builtin:smollm2-135m-instruct`.
        data: examples with completions: `builtin:gsm_symbolic`, `gsm8k`, a hub set, a `.jsonl`, `.json` or `.parquet`.
        json: print the summary as JSON on standard output, for programs.
    """
    options = {**asdict(settings or TuneSettings()), **asdict(loading or LoadSettings())}
    act = partial(run_tuning, base, data, announce=None if json else print_plan, **options)
    filled, artifact = carry_out("tune", [ModelReference.parse(base).label], where, act)

    def told(summary: Mapping[str, Any]) -> list[str]:
        return [
            f"{counted(summary['untouched']['checked'], 'frozen tensor')} checked: none changed.",
            f"Result: {artifact.path}",
        ]

    tell(filled, as_json=json, told=told, more={"path": str(artifact.path)})


def print_plan(plan: Mapping[str, Any]) -> None:
    """Show what is about to be trained: blocks, modules, ranks, parameters by part, memory."""
    console = Console(file=sys.stderr, highlight=False)
    share = plan["trained_parameters"] / plan["total_parameters"]
    console.print(
        f"{blocks_named(plan['layers']).capitalize()} of {plan['total_blocks']}, method {plan['method']}, "
        f"loss {plan['loss']}",
        style="bold",
    )
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for title, side in (("blocks", "left"), ("modules", "left"), ("rank", "right"), ("alpha", "right")):
        table.add_column(title, justify=side)  # type: ignore[arg-type]
    for blocks, modules, rank, alpha in _grouped(plan["targets"]):
        table.add_row(blocks, modules, rank, alpha)
    print_whole(table, console)
    parts = ", ".join(f"{part} {count:,}" for part, count in plan["by_part"].items())
    console.print(
        f"Trained: {plan['trained_parameters']:,} parameters ({parts}); the model has {plan['total_parameters']:,} "
        f"({share:.2%})."
    )
    if anchor := plan["anchor"]:
        console.print(
            f"Anchor: {anchor['kind']} on {anchor['weights']} weights, k {anchor['k']}, λ {anchor['lambda']:g}, scope "
            f"{anchor['scope']}."
        )
    when = plan["schedule"]
    console.print(
        f"Data: {counted(when['examples'], 'example')}, {when['target_tokens']:,} of {when['tokens']:,} tokens are "
        f"targets; {counted(when['steps'], 'step')} of {counted(when['examples_a_step'], 'example')}, "
        f"epochs: {when['epochs']:g}."
    )
    memory = plan["memory"]
    needed = [(title, memory[key]) for key, title in PURPOSES.items() if memory.get(key)]
    listed = ", ".join(f"{title} {size / 2**20:,.0f}" for title, size in needed)
    total = sum(size for _, size in needed) / 2**30
    console.print(f"Memory, estimated: {total:.2f} GiB (MiB: {listed}), and about 0.4 GiB for the libraries.")
    prefix = plan["frozen_prefix"]
    if prefix["blocks"]:
        kept = f", its output kept on disk ({prefix['bytes'] / 2**20:,.0f} MiB)" if prefix["cached"] else ""
        below = "The block" if prefix["blocks"] == 1 else f"The {prefix['blocks']} blocks"
        needs = "needs" if prefix["blocks"] == 1 else "need"
        console.print(f"{below} below the lowest tuned one {needs} no backward pass{kept}.")
    for note in plan["notes"]:
        console.print(printable(f"Note: {note}"), style="yellow", markup=False)


def _grouped(targets: list[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Neighbouring blocks that are treated alike, on one line."""
    by_block: dict[int, list[Mapping[str, Any]]] = {}
    for target in targets:
        by_block.setdefault(target["block"], []).append(target)
    lines: list[tuple[int, int, tuple[str, str, str]]] = []
    for block, found in sorted(by_block.items()):
        roles = ", ".join(dict.fromkeys(target["role"] for target in found))
        rank, alpha = (_values([target[key] for target in found]) for key in ("rank", "alpha"))
        if lines and lines[-1][2] == (roles, rank, alpha) and lines[-1][1] == block - 1:
            lines[-1] = (lines[-1][0], block, lines[-1][2])
        else:
            lines.append((block, block, (roles, rank, alpha)))
    return [(str(low) if low == high else f"{low}-{high}", *rest) for low, high, rest in lines]


def _values(values: list[Any]) -> str:
    return ", ".join(f"{value:g}" for value in dict.fromkeys(values) if value is not None) or "–"
