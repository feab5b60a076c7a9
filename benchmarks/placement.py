"""Does place matter on a laptop? The laptop recipe at three depths with equal parameters, scored before and after.

Writes runs to `--runs` and prints a table with exact match (greedy, held-out problems, Wilson 95 %), paired
differences to uniform placement, and the loss.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from midblock import load_dataset, tune
from midblock.checkpoints import LoadSettings, load_model, open_checkpoint
from midblock.data import encode
from midblock.evaluation import MatchResult, compare, exact_match, mean_nll

RECIPE = Path(__file__).parents[1] / "recipes" / "laptop.yaml"
PLANS = ("11111", "01100", "00010")


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print one row an arm and return them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plans", nargs="*", default=list(PLANS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--runs", type=Path, default=Path("runs/placement"))
    options = parser.parse_args(arguments)
    recipe = yaml.safe_load(RECIPE.read_text())
    base = open_checkpoint(recipe["base"])
    held_out = load_dataset(recipe["data"], split="test", num_samples=options.held_out, seed=100)
    before, nll = score(recipe["base"], base, held_out)
    rows = [{"arm": "base", **numbers(before), "held_out_nll": nll}]
    print(json.dumps(rows[0]), flush=True)
    for seed in options.seeds:
        uniform: MatchResult | None = None
        for plan in options.plans:
            folder = options.runs / f"{plan}-{seed}"
            given = {**recipe, "seed": seed}
            artifact = tune(
                given.pop("base"), given.pop("data"), plan, output_dir=folder,
                resume=folder.exists(), **{key: value for key, value in given.items() if key != "layers"},
            )  # fmt: skip
            after, nll = score(str(folder), open_checkpoint(str(folder)), held_out)
            uniform = uniform or after
            gap = compare(uniform, after)
            planned = json.loads((folder / "plan.json").read_text())
            row = {
                "arm": plan, "seed": seed, "blocks": planned["layers"], "parameters": planned["trained_parameters"],
                "ranks": sorted({target["rank"] for target in planned["targets"]}), **artifact.summary["nll"],
                "held_out_nll": nll, **numbers(after), "against_uniform": [gap.difference, gap.low, gap.high, gap.p],
                "seconds": artifact.log[-1]["seconds"],
            }  # fmt: skip
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def score(reference: str, checkpoint: Any, held_out: Any) -> tuple[MatchResult, list[float]]:
    model = load_model(checkpoint, LoadSettings(dtype="float32", device="cpu"))
    tokenizer = checkpoint.tokenizer()
    found = mean_nll(model, encode(held_out, tokenizer, max_length=128, add_eos=True))
    match = exact_match(model, tokenizer, held_out, max_new_tokens=24)
    return match, [round(value, 4) for value in (found.value, found.low, found.high)]


def numbers(match: MatchResult) -> dict[str, Any]:
    return {
        "exact_match": round(match.accuracy, 4),
        "interval": [round(match.low, 4), round(match.high, 4)],
        "n": match.n,
    }


if __name__ == "__main__":
    main()
