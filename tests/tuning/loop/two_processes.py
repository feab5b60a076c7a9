"""Run by torchrun from test_distributed.py: the same runs of `tune` in every process, one after the other."""

import json
import sys
from pathlib import Path

from midblock import tune


def main(plan: Path) -> None:
    """`plan` is a JSON list of keyword arguments."""
    for options in json.loads(plan.read_text()):
        tune(options.pop("base"), options.pop("data"), options.pop("layers"), **options)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
