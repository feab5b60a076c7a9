"""How cost grows with blocks, width, prompts, tokens and ranks, one at a time from a middle size, on random Llamas.

Each point runs in a process of its own; seconds are the processor's. Analyses are of the standard metrics with
intervals, nulls and floors; a step is one of LoRA on every projection, 4 × 64 tokens. It writes docs/cost.png.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.growth import WORDS, write_models
from midblock import analyze, load_pair, tune
from midblock.base import generator
from midblock.runs.surroundings import peak_memory

MIDDLE = {"blocks": 8, "width": 128, "prompts": 200, "tokens": 32}
CURVES: Mapping[str, tuple[int, ...]] = {
    "blocks": (4, 8, 16, 32),
    "width": (32, 128, 512, 1024),
    "prompts": (50, 200, 800, 3200),
    "tokens": (8, 32, 128, 512),
    "rank": (4, 16, 64, 256),
}
STEPS = 12
FIGURE = Path("docs") / "cost.png"


def write_rows(path: Path, count: int, tokens: int) -> str:
    """Texts of so many words, with a completion behind the first half."""
    stream = generator(0, "curves", tokens)
    lines = (" ".join(f"w{word}" for word in row).split() for row in stream.integers(WORDS, size=(count, tokens)))
    halves = ((" ".join(line[: tokens // 2]), " " + " ".join(line[tokens // 2 :])) for line in lines)
    path.write_text("".join(json.dumps({"prompt": one, "completion": other}) + "\n" for one, other in halves))
    return str(path)


def point(folder: Path, axis: str, size: int) -> dict[str, float]:
    """Processor seconds and memory of one size, in this process."""
    shape = MIDDLE | {axis: size} if axis != "rank" else dict(MIDDLE, width=512, tokens=64)
    base, tuned = write_models(folder, shape["width"], shape["blocks"], max_position_embeddings=1024)
    data = write_rows(folder / "rows.jsonl", shape["prompts"], shape["tokens"])
    if axis == "rank":
        return _step(base, data, size, folder / "run")
    pair = load_pair(base, tuned, device="cpu")
    before, start = peak_memory(), time.process_time()
    count = shape["prompts"]
    analyze(pair, data, output_dir=folder / "run", num_samples=count, num_token_samples=50, max_length=1024)
    seconds = time.process_time() - start
    return {"seconds": seconds, "memory_mb": (peak_memory() - before) / 2**20}


def _step(base: str, data: str, rank: int, folder: Path) -> dict[str, float]:
    before = peak_memory()
    asked = {"max_steps": STEPS, "per_device_train_batch_size": 4, "save_steps": 0, "logging_steps": 1}
    tune(base, data, output_dir=folder, lora_r=rank, lora_scale=1.0, device="cpu", dtype="float32", **asked)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    ends = [line["seconds"] for line in lines if "loss" in line]
    steps = sorted(after - one for one, after in pairwise(ends[2:]))
    return {"seconds": steps[len(steps) // 2], "memory_mb": (peak_memory() - before) / 2**20}


def draw(found: Mapping[str, Mapping[int, Mapping[str, float]]], path: Path) -> None:
    """A panel for each axis, both scales logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.6), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, (axis, points) in zip(panels, found.items(), strict=True):
        panel.plot(list(points), [each["seconds"] for each in points.values()], marker="o", color="#0072b2")
        panel.set(xscale="log", yscale="log", xlabel=axis)
        panel.set_ylim(*((0.1, 1) if axis == "rank" else (1, 100)))
        panel.set_xticks(list(points), [str(size) for size in points], fontsize=8)
        panel.set_xticks([], minor=True)
        panel.set_title("a LoRA step, seconds" if axis == "rank" else "an analysis, seconds", fontsize=9)
        panel.grid(visible=True, alpha=0.25)
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("")
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def exponent(points: Mapping[int, Mapping[str, float]]) -> float:
    """Slope between the two largest sizes, both logarithmic: 1 is proportional."""
    (small, one), (large, other) = list(points.items())[-2:]
    return math.log(other["seconds"] / one["seconds"]) / math.log(large / small)


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[int, dict[str, float]]]:
    """Print every point, draw the curves, and return them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axes", nargs="*", choices=list(CURVES), default=list(CURVES))
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)  # one point, in this process
    options = parser.parse_args(arguments)
    if options.alone:
        axis, size = options.alone
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(point(Path(scratch), axis, int(size))))
        return {}
    found: dict[str, dict[int, dict[str, float]]] = {}
    for axis in options.axes:
        for size in CURVES[axis]:
            command = [sys.executable, "-m", "benchmarks.curves", "--alone", axis, str(size)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.setdefault(axis, {})[size] = json.loads(done.stdout.splitlines()[-1])
            told = ", ".join(f"{name} {value:.3g}" for name, value in found[axis][size].items())
            print(f"{axis} {size}: {told}", flush=True)
        print(f"{axis}: grows as its power {exponent(found[axis]):.2f} between the largest two", flush=True)
    draw(found, FIGURE)
    return found


if __name__ == "__main__":
    main()
