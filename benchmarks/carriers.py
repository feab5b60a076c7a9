"""Applying a carrier to a checkpoint and to a loaded model, against copying the checkpoint with `cp`; sizes beside it.

All from the page cache to the same disk, one after the other, so that whatever else the machine does falls on all.
Seconds of the processor are told beside those of the clock: on a busy machine these wait, and threads wait more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.merging import copy
from benchmarks.partner import BASE, make_partner
from midblock import apply_carrier, load_pair
from midblock.checkpoints import (
    Carrier,
    CarrierConfig,
    EffectiveTensors,
    Entries,
    LoadSettings,
    load_model,
    open_checkpoint,
    write_carrier,
)
from midblock.interventions.merge.parents import open_parent
from midblock.interventions.merge.settings import MergeSettings
from midblock.interventions.merge.weights import Weights

REPEATS = 7


def make_carrier(tuned: Path, folder: Path, share: float) -> Carrier:
    """A carrier of random rows and columns of every weight in the blocks."""
    stream = torch.Generator().manual_seed(0)
    base = open_checkpoint(BASE)
    entries, shapes = {}, {}
    with EffectiveTensors.of_checkpoint(open_checkpoint(str(tuned))) as tensors:
        for name in tensors.names:
            if tensors.projection(name).block is not None:
                value = tensors.read(name)
                kept = tuple(torch.rand(side, generator=stream) < share for side in value.shape)
                entries[name], shapes[name] = Entries.of(value, kept), tuple(value.shape)
    config = CarrierConfig(BASE, base.weight_hash(), "llama", str(tuned), base.weight_hash(), shapes)
    return write_carrier(folder, entries, {}, config)


def stream(carrier: Path, target: Path) -> float:
    """Seconds to open both checkpoints' weights and write the applied one's."""
    pair = load_pair(BASE, f"{BASE}+{carrier}")
    alphas = MergeSettings().alphas((1.0,), pair.blocks, tied=True)
    target.mkdir()
    start = time.perf_counter()
    with open_parent(pair.base) as ours, open_parent(pair.tuned[0]) as theirs:
        Weights.plan(ours, theirs, alphas, None).write(target, lambda amount: None)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def processor(work: Callable[[], float]) -> tuple[float, float]:
    """Seconds of the clock as `work` tells them, and those of the processor, children included."""
    before = sum(os.times()[:4])
    seconds = work()
    return seconds, sum(os.times()[:4]) - before


def applied(model: torch.nn.Module, carrier: Carrier) -> float:
    """Seconds to put a carrier into a loaded model and to take it out again."""
    start = time.perf_counter()
    with apply_carrier(model, carrier):
        pass
    return time.perf_counter() - start


def opened(carrier: Path) -> float:
    """Seconds to open and check a carrier's file."""
    start = time.perf_counter()
    Carrier.open(carrier)
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Print the figures of one run and return them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.5, help="of rows and of columns that are kept")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        carrier = make_carrier(make_partner(place / "partner"), place / "carrier", given.share)
        base = open_checkpoint(BASE)
        model = load_model(base, LoadSettings(**{**asdict(LoadSettings()), "device": "cpu"}))
        stream(place / "carrier", place / "first")
        times = [
            (
                *processor(lambda: copy(base.folder, place / "copy", sync=False)),
                *processor(lambda: stream(place / "carrier", place / "out")),
                applied(model, carrier),
                opened(place / "carrier"),
            )
            for _ in range(REPEATS)
        ]
        copying, copying_cpu, writing, writing_cpu, applying, opening = (min(each) for each in zip(*times, strict=True))
        with base.tensors() as tensors:
            size = sum(map(tensors.nbytes, tensors.names))
        found = {
            "checkpoint_gb": round(size / 1e9, 3),
            "threads": os.cpu_count() or 1,
            "entries_m": round(carrier.count / 1e6, 1),
            "carrier_mb": round((place / "carrier" / "carrier.safetensors").stat().st_size / 1e6, 1),
            "cp_s": round(copying, 3),
            "write_applied_s": round(writing, 3),
            "share_of_cp": round(copying / writing, 3),
            "median_share_of_cp": round(float(torch.tensor([one / two for one, _, two, *_ in times]).median()), 3),
            "cp_processor_s": round(copying_cpu, 3),
            "write_applied_processor_s": round(writing_cpu, 3),
            "apply_and_leave_s": round(applying, 3),
            "apply_share_of_cp": round(copying / applying, 3),
            "open_and_check_s": round(opening, 3),
        }
    print(json.dumps(found, indent=2))
    return found


if __name__ == "__main__":
    main()
