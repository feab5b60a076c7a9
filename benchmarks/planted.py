"""Is a change told where it was made? A real change kept in one third of the blocks, and what an analysis says.

    python -m benchmarks.planted BASE TUNED --num-samples 24

Of the tuned model's change only that of one third of the blocks is kept, third by third; the rest is the base's. A
table is printed: the third that was kept, the headline, the shares of own change and of what states carry, and
the blocks that `auto:RUN` would tune. Cost: an analysis of so few prompts for each third.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.partner import BASE
from midblock import analyze, load_pair
from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, Pair
from midblock.runs.lenient import read_json
from midblock.tuning.place.auto import plan_from_run


def kept_in(pair: Pair, blocks: range) -> torch.nn.Module:
    """The base, with these blocks of the tuned model."""
    model = copy.deepcopy(pair.base.model)
    theirs = Anatomy.of(pair.tuned[0].model).blocks
    for block in blocks:
        Anatomy.of(model).blocks[block].load_state_dict(theirs[block].state_dict())
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each third."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", default=BASE)
    parser.add_argument("tuned", nargs="?", default="runs/demo/sft")
    parser.add_argument("--data", default="builtin:gsm_symbolic")
    parser.add_argument("--num-samples", type=int, default=24)
    options = parser.parse_args(arguments)
    pair = load_pair(options.base, options.tuned, dtype="float32")
    total = pair.blocks
    print("| kept in | headline | own change by third | carried change by third | auto:RUN |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        for third in range(3):
            blocks = range(third * total // 3, (third + 1) * total // 3)
            made = Pair.of_models(pair.base.model, {"kept": kept_in(pair, blocks)}, pair.tokenizer)
            run = Path(scratch) / str(third)
            some = {"num_samples": options.num_samples, "num_token_samples": options.num_samples}
            analyze(made, options.data, output_dir=run, precision_floor=False, **some)
            summary: dict[str, Any] = read_json(run / "summary.json", {})
            entry = summary["models"][0]
            shares = [_shares(entry.get(kind)) for kind in ("own_depth", "representation_depth")]
            print(f"| {blocks[0]}–{blocks[-1]} | {summary['headline']} | {' | '.join(shares)} | {_plan(run, total)} |")


def _shares(depth: dict[str, list[float]] | None) -> str:
    return " · ".join(f"{100 * share:.0f} %" for share in depth["thirds"]) if depth else "–"


def _plan(run: Path, total: int) -> str:
    try:
        return str(plan_from_run(run, total))
    except MidblockError as error:
        return error.what


if __name__ == "__main__":
    main()
