"""RPSFT against plain SFT at equal steps: what is learned, what is forgotten, and how far the top spaces turn.

Full tuning of the embedded model on sums. Learned: −ln p on held-out sums. Forgotten: KL(base‖tuned) on
unrelated prompts. Rotation: mean and largest principal angle between the top-k singular spaces, and the share of the
change inside the top block, from `analyze --weights-only`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from midblock import analyze, load_dataset, load_pair, tune
from midblock.checkpoints import LoadSettings, load_model, open_checkpoint
from midblock.data import encode
from midblock.evaluation import mean_divergence, mean_nll

BASE, DATA = "builtin:smollm2-135m-instruct", "builtin:chain_sum"
SCHEDULE = {
    "method": "full", "max_length": 128, "per_device_train_batch_size": 8, "learning_rate": 5e-5, "warmup_steps": 0.1,
    "save_steps": 0, "device": "cpu", "dtype": "float32",
}  # fmt: skip
RPSFT = {"anchor": "rpsft", "anchor_k": "64"}
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "block, λ 1": {**RPSFT, "anchor_lambda": 1.0},
    "subspace, λ 1": {**RPSFT, "anchor_lambda": 1.0, "anchor_scope": "subspace"},
    "block, λ 100": {**RPSFT, "anchor_lambda": 100.0},
    "subspace, λ 100": {**RPSFT, "anchor_lambda": 100.0, "anchor_scope": "subspace"},
}
MEASURED = ("delta_rel", "block_drift", "subspace_rotation_mean", "subspace_rotation_max")


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print one row an arm and return them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unrelated", default="builtin:gsm_symbolic", help="prompts to measure forgetting on")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--runs", type=Path, default=Path("runs/anchoring"))
    options = parser.parse_args(arguments)
    checkpoint = open_checkpoint(BASE)
    base, tokenizer = load_model(checkpoint, LoadSettings(dtype="float32", device="cpu")), checkpoint.tokenizer()
    held_out = encode(load_dataset(DATA, split="test", num_samples=200, seed=100), tokenizer, max_length=128)
    prompts = encode(load_dataset(options.unrelated, num_samples=48, seed=100), tokenizer, max_length=128)
    rows = [{"arm": "base", "held_out_nll": spread(mean_nll(base, held_out))}]
    print(json.dumps(rows[0]), flush=True)
    for arm in options.arms:
        folder = options.runs / f"{arm}-{options.seed}".replace(", λ ", "-")
        artifact = tune(
            BASE, DATA, "all", output_dir=folder, resume=folder.exists(), num_samples=8 * options.steps,
            max_steps=options.steps, seed=options.seed, **SCHEDULE, **ARMS[arm],
        )  # fmt: skip
        tuned = load_model(open_checkpoint(str(folder)), LoadSettings(dtype="float32", device="cpu"))
        table = analyze(load_pair(BASE, str(folder), device="cpu"), weights_only=True, metrics=",".join(MEASURED)).frame
        row = {
            "arm": arm, "steps": options.steps, "seed": options.seed,
            "held_out_nll": spread(mean_nll(tuned, held_out)),
            "unrelated_kl": spread(mean_divergence(tuned, base, prompts)),
            "penalty": artifact.log[-1].get("penalty"),
            **{name: averaged(table, name) for name in MEASURED},
        }  # fmt: skip
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def averaged(table: Any, metric: str) -> float:
    """Mean over the projections of all blocks."""
    chosen = table[(table.metric == metric) & table.module.str.endswith("_proj")]
    return float(f"{chosen.value.mean():.4g}")


def spread(found: Any) -> list[float]:
    return [float(f"{value:.4g}") for value in (found.value, found.low, found.high)]


if __name__ == "__main__":
    main()
