"""What was only written for a GPU, checked on one, in one command: `python -m benchmarks.gpu`.

Equality with the CPU at stated tolerances, then ratios of `make bench` at the shapes of 1B and 7B models with random
weights: no network is needed. Each check runs in a process of its own: one that fails is a line and the rest go on.
`--device cpu --small` is a dry run with pico shapes, which says that the script is right and nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.gpu_checks import CHECKS, Stage, Verdict
from midblock.studies.doctor.machine import devices
from midblock.studies.doctor.packages import versions

MINUTES = 20.0
RESULTS = Path("docs") / "results"


def main(arguments: Sequence[str] | None = None) -> list[Verdict]:
    """Run every check, print a line each, and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="pico shapes")
    parser.add_argument("--only", nargs="*", choices=list(CHECKS), default=list(CHECKS))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of all checks together")
    parser.add_argument("--output", type=Path, default=None, help="results file; docs/results/gpu.md when left out")
    parser.add_argument("--check", choices=list(CHECKS), help=argparse.SUPPRESS)  # one check, in this process
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.check:
        verdict = CHECKS[options.check](Stage(options.scratch, options.device, options.small))
        print(json.dumps(asdict(verdict)))
        return [verdict]
    start, verdicts = time.monotonic(), list[Verdict]()
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            left = 60 * options.minutes - (time.monotonic() - start)
            verdicts.append(alone(name, options, Path(scratch), left))
            print(verdicts[-1].line, flush=True)
    output = options.output or RESULTS / f"gpu{'_dry_run' if options.device == 'cpu' else ''}.md"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(verdicts, options, time.monotonic() - start), encoding="utf-8")
    print(f"written: {output}")
    return verdicts


def alone(name: str, options: argparse.Namespace, scratch: Path, left: float) -> Verdict:
    """A check in a process of its own: whatever ends it ends nothing else."""
    if left < 5:
        return Verdict(name, "not run", "no time was left")
    command = [sys.executable, "-m", "benchmarks.gpu", "--check", name, "--scratch", str(scratch)]
    command += ["--device", options.device, *(["--small"] if options.small else [])]
    begun = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        return Verdict(name, "not run", f"stopped after {left:.0f} s: no time was left")
    seconds = time.monotonic() - begun
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no word"]
        return Verdict(name, "failed", f"exit code {done.returncode}: {lines[-1][:300]}", seconds=seconds)
    return Verdict(**{**json.loads(done.stdout.strip().splitlines()[-1]), "seconds": seconds})


def page(verdicts: Sequence[Verdict], options: argparse.Namespace, seconds: float) -> str:
    """The results file."""
    there = "; ".join(f"{each.name}: {each.title}, {each.total / 2**30:.0f} GiB" for each in devices())
    where = f"{platform.system()}, Python {platform.python_version()}"
    known = ", ".join(f"{name} {version}" for name, version in versions().items() if version)
    dry = options.device == "cpu"
    title = "GPU checks: a dry run on the CPU" if dry else "GPU checks"
    told = "Pico shapes on the CPU try the script, and say nothing of speed or of a GPU. " if dry else ""
    rows = "\n".join(
        f"| {each.name} | {each.state} | {each.told.replace('|', '/')} | {each.seconds:.0f} s | {each.peak} |"
        for each in verdicts
    )
    counts = ", ".join(
        f"{sum(each.state == state for each in verdicts)} {state}" for state in dict.fromkeys(v.state for v in verdicts)
    )
    small = " --small" if options.small else ""
    return (
        f"# {title}\n\n{told}{there}; {where}; {known}; {time.strftime('%Y-%m-%d')}.\n\n"
        f"`python -m benchmarks.gpu --device {options.device}{small}`: {counts}, {seconds / 60:.1f} minutes. Each "
        "check runs in a process of its own; *peak* is memory of the device as torch counts it.\n\n"
        f"| check | | what was found | time | peak |\n| --- | --- | --- | --- | --- |\n{rows}\n"
    )


if __name__ == "__main__":
    torch.set_float32_matmul_precision("highest")
    main()
