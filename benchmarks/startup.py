"""Seconds until `midblock --help` has printed, beside Python's own start."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def seconds(command: Sequence[str]) -> float:
    """Best of five runs."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        best = min(best, time.perf_counter() - start)
    return round(best, 3)


def main() -> dict[str, float]:
    """Print the figures of one run and return them."""
    script = Path(sys.executable).with_name("midblock")
    found = {"python_s": seconds([sys.executable, "-c", ""]), "help_s": seconds([str(script), "--help"])}
    print(json.dumps(found, indent=2))
    return found


if __name__ == "__main__":
    main()
