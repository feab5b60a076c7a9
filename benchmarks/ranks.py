"""An analysis by one process and by several, a thread each: whole commands, in turns, on the embedded model."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from benchmarks.partner import BASE, make_partner

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def took(command: Sequence[str]) -> float:
    """Seconds of a command, all of it."""
    start = time.perf_counter()
    subprocess.run(command, check=True, env=ONE_THREAD, capture_output=True)
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Print the figures of one run and return them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args(arguments)
    alone = [sys.executable, "-m", "midblock"]
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    several += ["--nproc-per-node", str(given.processes), "-m", "midblock"]
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        tuned = str(make_partner(place / "partner"))
        asked = ["analyze", BASE, tuned, "--num-samples", str(given.prompts), "--device", "cpu"]
        asked += ["--dtype", "float32", "--overwrite"]
        times = [
            (took([*alone, *asked, "-o", str(place / "one")]), took([*several, *asked, "-o", str(place / "all")]))
            for _ in range(given.rounds)
        ]
        one, many = (min(column) for column in zip(*times, strict=True))
        tables = [pd.read_parquet(place / name / "layers.parquet") for name in ("one", "all")]
        phases = json.loads((place / "all" / "run.json").read_text())["phases"]
    found = {
        "processes": given.processes,
        "prompts": given.prompts,
        "one_s": round(one, 1),
        "all_s": round(many, 1),
        "times_faster": round(one / many, 2),
        "equal_to_the_bit": tables[0].equals(tables[1]),
        "phases_s": {name: each["seconds"] for name, each in phases.items()},
    }
    print(json.dumps(found, indent=2))
    return found


if __name__ == "__main__":
    main()
