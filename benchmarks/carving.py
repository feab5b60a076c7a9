"""What carving costs beside plain full tuning: time of a step, and peak memory, on the embedded model in float32.

A step is 4 × 128 tokens forward and backward, clipping and AdamW over the decoder's own weights. Both arms take their
steps in turns on one model, and what carving adds is timed inside its step too, in processor time: what else runs on
the machine then shifts both alike. Peaks are of a process each. About three minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.partner import BASE
from midblock.checkpoints import Anatomy, LoadSettings, load_model, open_checkpoint
from midblock.runs.surroundings import peak_memory
from midblock.tuning.carve.carver import Carver
from midblock.tuning.carve.dual import DualControl
from midblock.tuning.carve.masks import Masks
from midblock.tuning.place.carved import between
from midblock.tuning.settings import Carving

TOKENS, BATCH, WARM_UP = 128, 4, 2
MOST_TIME, MOST_MEMORY = 1.10, 0.4
LOADING = LoadSettings(dtype="float32", device="cpu")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Print the ratios against their limits, and return them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6, help="of each arm, after two that are not counted")
    parser.add_argument("--turning", type=float, default=0.001, help="share of masks that turn in a step")
    parser.add_argument("--no-peaks", action="store_true")
    parser.add_argument("--peak-of", choices=("plain", "carving"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peak_of:
        found: dict[str, Any] = dict(peak(options.peak_of))
    else:
        found = times(options.steps, options.turning)
        print(f"LCDD step / full step: {found['ratio']:.3f} (limit {MOST_TIME}), {found}", flush=True)
        if not options.no_peaks:
            found |= peaks()
            limit = found["plain_gb"] + found["base_gb"] + MOST_MEMORY
            print(f"LCDD peak: {found['carving_gb']:.2f} GB (limit {limit:.2f}), plain {found['plain_gb']:.2f} GB")
    print(json.dumps(found))
    return found


def times(steps: int, turning: float) -> dict[str, float]:
    """Seconds of processor time of both arms' steps, taken in turns."""
    model, carver = carved()
    ids = batch(model)
    adam = torch.optim.AdamW([each.parameter for each in carver.weights.values()], lr=1e-6, weight_decay=0.0)
    stream = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {"plain": [], "carving": [], "gather": [], "turn": []}

    def timed(arm: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        found = work()
        seconds[arm].append(time.process_time() - start)
        return found

    def step(beside: bool) -> None:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        if beside:
            timed("gather", lambda: carver.before_step(float(loss.detach())))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        if beside:
            shaken = {key: on ^ (torch.rand(len(on), generator=stream) < turning) for key, on in carver.on.items()}
            timed("turn", lambda: carver.turn(shaken, adam.state))
        adam.zero_grad()

    for _ in range(WARM_UP + steps):
        timed("plain", lambda: step(False))
        timed("carving", lambda: step(True))
    median = {arm: statistics.median(each[WARM_UP:]) for arm, each in seconds.items()}
    beside = median["gather"] + median["turn"]
    return {**median, "ratio": (median["plain"] + beside) / median["plain"], "raw": median["carving"] / median["plain"]}


def carved(base: nn.Module | None = None) -> tuple[nn.Module, Carver]:
    """A model, the embedded one by default, between itself and a copy whose decoder moved a little."""
    base = load_model(open_checkpoint(BASE), LOADING) if base is None else base
    groups, weights = between(base, moved(base), "moved")
    for weight in weights.values():
        weight.parameter.requires_grad_()
    settings = Carving(mask_warmup_steps=10**6)
    return base.train(), Carver(settings, groups, weights, Masks.drawn(groups, 0), DualControl.of(settings))


def moved(base: nn.Module) -> nn.Module:
    """A copy with other weights in its blocks."""
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for block in Anatomy.of(tuned).blocks:
            for parameter in block.parameters():
                parameter.mul_(1.001)
    return tuned


def batch(model: nn.Module) -> torch.Tensor:
    config: Any = model.config
    return torch.randint(3, config.vocab_size, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))


def peaks() -> dict[str, float]:
    """Peak memory of both arms in GB, each in a process of its own, and the size of the decoder's base weights."""
    found: dict[str, float] = {}
    for arm in ("plain", "carving"):
        command = [sys.executable, "-m", "benchmarks.carving", "--peak-of", arm]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found |= json.loads(told.splitlines()[-1])
    return found


def peak(arm: str) -> dict[str, float]:
    """Peak memory of this process after two steps, and the size of the weights that are trained, in GB."""
    carver: Carver | None = None
    if arm == "plain":
        model = load_model(open_checkpoint(BASE), LOADING).train()
        trained = [each for block in Anatomy.of(model).blocks for each in block.parameters()]
        for parameter in trained:
            parameter.requires_grad_()
    else:
        model, carver = carved()
        trained = [weight.parameter for weight in carver.weights.values()]
    ids = batch(model)
    adam = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.0)
    for _ in range(2):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        if carver is not None:
            carver.before_step(1.0)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        if carver is not None:
            carver.after_step(adam)
        adam.zero_grad()
    return {f"{arm}_gb": peak_memory() / 2**30, "base_gb": sum(each.nbytes for each in trained) / 2**30}


if __name__ == "__main__":
    main()
