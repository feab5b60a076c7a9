"""Merging two checkpoints against copying one of them with `cp`, both from the page cache to the same disk."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.partner import BASE, make_partner
from midblock import load_pair
from midblock.checkpoints import open_checkpoint
from midblock.interventions import merge
from midblock.interventions.merge.parents import open_parent
from midblock.interventions.merge.settings import MergeSettings
from midblock.interventions.merge.weights import Weights
from midblock.runs.record import read_record

REPEATS = 7
ALPHAS = (0.1, 0.5, 0.9, 0.5, 0.1)  # nothing to copy: every tensor is computed
ALONE = """
import sys
from midblock.runs.surroundings import peak_memory
from midblock.interventions import merge
merge(sys.argv[1], sys.argv[2], sys.argv[3], output_dir=sys.argv[4])
print(peak_memory())
"""


def synced(folder: Path) -> None:
    """Wait until the files lie on the disk: for both sides alike, where it is asked for."""
    for file in folder.glob("*.safetensors"):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def copy(source: Path, target: Path, *, sync: bool) -> float:
    """Seconds of `cp` for one checkpoint's weights."""
    target.mkdir()
    files = [str(file) for file in source.glob("*.safetensors")]
    start = time.perf_counter()
    subprocess.run(["cp", *files, str(target)], check=True)
    if sync:
        synced(target)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def stream(base: str, tuned: str, target: Path, *, sync: bool) -> float:
    """Seconds to open both checkpoints' weights and write the merge's."""
    pair = load_pair(base, tuned)
    alphas = MergeSettings().alphas(ALPHAS, pair.blocks, tied=True)
    target.mkdir()
    start = time.perf_counter()
    with open_parent(pair.base) as ours, open_parent(pair.tuned[0]) as theirs:
        Weights.plan(ours, theirs, alphas, None).write(target, lambda amount: None)
    if sync:
        synced(target)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def whole(base: str, tuned: str, target: Path) -> float:
    """Seconds of `midblock.merge`, tokenizer, tables and record included."""
    start = time.perf_counter()
    merge(base, tuned, ALPHAS, output_dir=target)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def peak(base: str, tuned: str, target: Path) -> tuple[float, float]:
    """Peak memory in GB of a process that only merges, and the seconds its weights took."""
    command = [sys.executable, "-c", ALONE, base, tuned, ",".join(map(str, ALPHAS)), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = read_record(target)["phases"]["weights"]["seconds"]
    shutil.rmtree(target)
    return int(done.stdout) / 2**30, seconds


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Print the figures of one run and return them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sync", action="store_true", help="both sides wait for the disk (fsync)")
    parser.add_argument("--dtype", default="float32", help="of both checkpoints")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        tuned = make_partner(place / "partner")
        base = open_checkpoint(BASE).folder
        if given.dtype != "float32":
            base, tuned = (
                merge(each, each, 0, output_dir=place / name, dtype=given.dtype)
                for each, name in ((base, "narrow_base"), (tuned, "narrow_partner"))
            )
        with open_checkpoint(str(base)).tensors() as tensors:
            largest, size = max(map(tensors.nbytes, tensors.names)), sum(map(tensors.nbytes, tensors.names))
        stream(str(base), str(tuned), place / "first", sync=False)
        # One after the other, so that whatever else the machine does falls on both.
        times = [
            (
                copy(base, place / "copy", sync=given.sync),
                stream(str(base), str(tuned), place / "out", sync=given.sync),
            )
            for _ in range(REPEATS)
        ]
        copying, merging = (min(column) for column in zip(*times, strict=True))
        memory, _ = peak(str(base), str(tuned), place / "out")
        found = {
            "gigabytes": round(size / 1e9, 3),
            "threads": os.cpu_count() or 1,
            "cp_s": round(copying, 3),
            "merge_s": round(merging, 3),
            "share_of_cp": round(copying / merging, 3),
            "median_share_of_cp": round(float(torch.tensor([one / two for one, two in times]).median()), 3),
            "whole_verb_s": round(min(whole(str(base), str(tuned), place / "out") for _ in range(3)), 3),
            "largest_tensor_gb": round(largest / 2**30, 3),
            "limit_gb": round((4 * largest + 300e6) / 2**30, 3),
            "peak_gb": round(memory, 3),
        }
    print(json.dumps(found, indent=2))
    return found


if __name__ == "__main__":
    main()
