"""Comparing two checkpoints' weights against reading the same two files with `cat`, both from the page cache."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.partner import BASE, make_partner
from midblock import load_pair
from midblock.analysis.weight_comparison import WeightComparison
from midblock.checkpoints import open_checkpoint

NORMS = frozenset({"delta_fro", "delta_rel"})
REPEATS = 7
ALONE = """
import sys
from midblock import analyze, load_pair
from midblock.runs.surroundings import peak_memory
analyze(load_pair(sys.argv[1], sys.argv[2]), weights_only=True, metrics=sys.argv[3])
print(peak_memory())
"""


def cat(files: Sequence[Path]) -> float:
    """Seconds to read the files and throw the bytes away."""
    start = time.perf_counter()
    with open("/dev/null", "wb") as nowhere:
        subprocess.run(["cat", *map(str, files)], stdout=nowhere, check=True)
    return time.perf_counter() - start


def compare(base: str, tuned: str, wanted: frozenset[str]) -> float:
    """Seconds to open both checkpoints' tensors and compare them."""
    pair = load_pair(base, tuned)
    layers = frozenset(range(-1, pair.blocks + 1))
    start = time.perf_counter()
    list(WeightComparison(pair.base, pair.tuned[0], pair.blocks, wanted, layers, rank=64).rows())
    return time.perf_counter() - start


def peak(base: str, tuned: str, metrics: str) -> float:
    """Peak memory in GB of a process that does nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, base, tuned, metrics], capture_output=True, text=True, check=True
    )
    return int(done.stdout) / 2**30


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Print the figures of one run and return them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=BASE, help="its files must fit the page cache, or both sides read the disk")
    parser.add_argument("--tuned", help="a copy of the base, moved a little, when left out")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--norms-only", action="store_true", help="leave spectra and drift out: minutes at 7B")
    given = parser.parse_args(arguments)
    checkpoint = open_checkpoint(given.base)
    with checkpoint.tensors() as tensors, tempfile.TemporaryDirectory() as scratch:
        largest = max(tensors.nbytes(name) for name in tensors.names)
        tuned = given.tuned or str(make_partner(Path(scratch) / "partner"))
        files = [*checkpoint.folder.glob("*.safetensors"), *open_checkpoint(tuned).folder.glob("*.safetensors")]
        cat(files)
        # One after the other, so that whatever else the machine does falls on both.
        times = [(cat(files), compare(given.base, tuned, NORMS)) for _ in range(given.repeats)]
        reading, norms = (min(column) for column in zip(*times, strict=True))
        found = {
            "gigabytes": round(sum(file.stat().st_size for file in files) / 1e9, 3),
            "cat_s": round(reading, 3),
            "norms_s": round(norms, 3),
            "share_of_cat": round(reading / norms, 3),
            "largest_tensor_gb": round(largest / 2**30, 3),
            "limit_gb": round((4 * largest + 300e6) / 2**30, 3),
            "norms_peak_gb": round(peak(given.base, tuned, ",".join(NORMS)), 3),
        }
        if not given.norms_only:
            every = compare(given.base, tuned, frozenset({"delta_spectral", "block_drift"}) | NORMS)
            found["all_metrics_s"] = round(every, 1)
            found["all_metrics_peak_gb"] = round(peak(given.base, tuned, "standard"), 3)
    print(json.dumps(found, indent=2))
    return found


if __name__ == "__main__":
    main()
