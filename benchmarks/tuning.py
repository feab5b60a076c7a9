"""Step times of tuning, side by side: depth, the prefix cache and the anchor against plain PEFT + TRL and plain SFT.

Each arm runs in a process of its own, in turns, over the same 128-token examples; a step is everything between two
optimiser steps, data loading and logging included. The first steps of a process are not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.partner import BASE
from midblock import tune
from midblock.base import MidblockError
from midblock.checkpoints import LoadSettings, load_model, open_checkpoint
from midblock.data import ExampleSet, load_dataset
from midblock.runs.surroundings import peak_memory

TOKENS, BATCH, WARM_UP = 128, 4, 3


@dataclass(frozen=True)
class Course:
    """What is tuned, and where.

    Attributes:
        data: a dataset reference; None draws worked problems.
        dtype: of the weights.
    """

    base: str = BASE
    data: str | None = None
    tokens: int = TOKENS
    batch: int = BATCH
    device: str = "cpu"
    dtype: str = "float32"


HERE = Course()
LORA = {"match_parameters": "all:16", "target_modules": "attention", "learning_rate": 1e-4}
FULL = {"method": "full", "learning_rate": 1e-6, "gradient_accumulation_steps": 4}
RPSFT = {**FULL, "anchor": "rpsft", "also": ("embedding", "head")}
PLAIN = {**FULL, "also": ("embedding", "head")}
UNIFORM = {**LORA, "match_parameters": None, "lora_r": 16}

ARMS: dict[str, dict[str, Any]] = {
    "peft+trl uniform": {"plain": True},
    "midblock uniform": UNIFORM,
    "midblock 01000": {**LORA, "layers": "01000"},
    "midblock 00010 cached": {**LORA, "layers": "00010", "prefix_cache": "on", "num_train_epochs": 3},
    "midblock 00010": {**LORA, "layers": "00010", "prefix_cache": "off"},
    "lora rpsft k=64": {**UNIFORM, "anchor": "rpsft", "anchor_k": "64"},
    "full": PLAIN,
    "full rpsft k=64": {**RPSFT, "anchor_k": "64"},
    "full rpsft k=256": {**RPSFT, "anchor_k": "256"},
    "full published k=64": {**PLAIN, "published": "64"},
}
# ratio, arm, against, limit
LINES = (
    ("uniform LoRA, midblock / PEFT+TRL", "midblock uniform", "peft+trl uniform", 1.02),
    ("01000 at equal parameters / PEFT+TRL uniform", "midblock 01000", "peft+trl uniform", 0.97),
    ("00010, prefix cached / PEFT+TRL uniform", "midblock 00010 cached", "peft+trl uniform", 0.65),
    ("00010, prefix not cached / PEFT+TRL uniform", "midblock 00010", "peft+trl uniform", None),
    ("LoRA with RPSFT k=64 / LoRA", "lora rpsft k=64", "midblock uniform", 1.02),
    ("full with RPSFT k=64 / full", "full rpsft k=64", "full", 1.05),
    ("full with RPSFT k=256 / full", "full rpsft k=256", "full", 1.12),
    ("full with the published penalty k=64 / full", "full published k=64", "full", None),
)


class Clock:
    """Progress that writes down when each optimiser step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def phase(self, title: str, total: float) -> Callable[[float], None]:
        def advance(amount: float) -> None:
            if title == "tuning":
                self.times.append(time.perf_counter())

        return advance

    @property
    def steps(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


def examples(count: int) -> ExampleSet:
    """Worked problems, all longer than `TOKENS`, so that every batch holds 4 × 128 real tokens."""
    return load_dataset("builtin:gsm_symbolic", split="train", num_samples=count, seed=0)


def run_arm(name: str, steps: int, targets: str) -> dict[str, float]:
    """Run one arm in this process."""
    options = dict(ARMS[name])
    accumulation = options.get("gradient_accumulation_steps", 1)
    epochs = options.get("num_train_epochs", 1)
    count = -(-steps // epochs) * BATCH * accumulation
    clock, held = Clock(), watch_anchor()
    if options.pop("plain", False):
        plain_trl(clock, count, targets)
    elif k := options.pop("published", None):
        with published_penalty(k):
            tune_arm(clock, options, count, targets)
    else:
        tune_arm(clock, options, count, targets)
    spent = statistics.median(held[WARM_UP:]) if held else 0.0
    counted = clock.steps[max(WARM_UP, steps // epochs if epochs > 1 else 0) :]
    return {
        "seconds": statistics.median(counted),
        "steps": len(counted),
        "anchor_s": spent,
        "peak_gb": peak_memory() / 2**30,
    }


def watch_anchor() -> list[float]:
    """Time the anchor inside its step too: from one process to the next a step varies by more than the anchor takes."""
    from midblock.tuning.anchor.anchor import Anchor

    seconds: list[float] = []
    original = Anchor.add_gradient

    def timed(self: Anchor, factor: float = 1.0) -> Any:
        start = time.perf_counter()
        value = original(self, factor)
        seconds.append(time.perf_counter() - start)
        return value

    Anchor.add_gradient = timed  # type: ignore[method-assign]
    return seconds


def tune_arm(clock: Clock, options: dict[str, Any], count: int, targets: str, course: Course = HERE) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        given = {"layers": "all", "num_train_epochs": 1, **options}
        tune(
            course.base,
            course.data or examples(count),
            given.pop("layers"),
            output_dir=Path(scratch) / "run",
            progress=clock,
            max_length=course.tokens,
            per_device_train_batch_size=course.batch,
            train_on_prompt=targets == "all",
            logging_steps=10,
            save_steps=0,
            device=course.device,
            dtype=course.dtype,
            **given,
        )


def plain_trl(clock: Clock, count: int, targets: str, course: Course = HERE) -> None:
    """What a user of PEFT and TRL writes: LoRA r=16 on q, k, v, o of every block."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from midblock.tuning.loop.examples import load_examples
    from midblock.tuning.loop.tune_settings import TuneSettings

    checkpoint = open_checkpoint(course.base)
    tokenizer = checkpoint.tokenizer()
    settings = TuneSettings(max_length=course.tokens, train_on_prompt=targets == "all")
    rows = load_examples(course.data or examples(count), tokenizer, settings).dataset().remove_columns("index")
    advance = clock.phase("tuning", count)

    class Ticks(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            advance(1)

    model: Any = load_model(checkpoint, LoadSettings(dtype=course.dtype, device=course.device))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = SFTConfig(
            output_dir=scratch,
            per_device_train_batch_size=course.batch,
            max_length=course.tokens,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            bf16=course.dtype == "bfloat16",
            gradient_checkpointing=False,
            use_cpu=course.device == "cpu",
            learning_rate=1e-4,
            num_train_epochs=1,
        )
        SFTTrainer(
            model,
            arguments,
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"
            ),
            callbacks=[Ticks()],
        ).train()


def published_penalty(k: str) -> Any:
    """P2's way: the penalty joins the loss of every micro-batch and goes through autograd."""
    from unittest.mock import patch

    from midblock.tuning.anchor.anchor import autograd_penalty
    from midblock.tuning.anchor.factor_cache import load_factors
    from midblock.tuning.loop.trainer import DepthTrainer

    class Published(DepthTrainer):
        def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(model, *args, **kwargs)
            trained = model.named_parameters()
            self.held = {name: value for name, value in trained if value.ndim == 2 and value.requires_grad}
            self.factors = load_factors(self.held, k, weight_hash=None, seed=0)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            penalty = autograd_penalty(self.held, self.factors)
            return super().compute_loss(*args, **kwargs) + penalty / self.args.gradient_accumulation_steps

    return patch("midblock.tuning.loop.trainer.DepthTrainer", Published)


def set_up(k: str) -> dict[str, float]:
    """Seconds to factorise every 2-D weight, against a full SVD of each."""
    import torch

    from midblock.tuning.anchor.factor_cache import load_factors

    model = load_model(open_checkpoint(BASE), LoadSettings(dtype="float32", device="cpu"))
    weights = {name: value.detach() for name, value in model.named_parameters() if value.ndim == 2}
    start = time.perf_counter()
    load_factors(weights, k, weight_hash=None, seed=0)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    for value in weights.values():
        torch.linalg.svd(value, full_matrices=False)
    full = time.perf_counter() - start
    return {"factors_s": round(ours, 2), "full_svd_s": round(full, 2), "ratio": round(ours / full, 3)}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Print the ratios of one run and return them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", choices=list(ARMS), help="run one arm in this process, for the runs below")
    parser.add_argument("--only", nargs="*", default=list(ARMS), help="arms to run")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--targets", choices=("all", "completion"), default="all")
    options = parser.parse_args(arguments)
    if options.arm:
        found: dict[str, Any] = run_arm(options.arm, options.steps, options.targets)
        print(json.dumps(found))
        return found
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.only}
    for _ in range(options.rounds):
        for name in options.only:
            steps = max(WARM_UP + 3, options.steps // 2) if "full" in name else options.steps
            runs[name].append(in_own_process(name, steps, options.targets))
            print(f"{name}: {runs[name][-1]}", file=sys.stderr, flush=True)
    best = {name: min(each["seconds"] for each in several) for name, several in runs.items()}
    found = {
        "arms": {name: {"seconds": best[name], "peak_gb": round(runs[name][0]["peak_gb"], 3)} for name in best},
        "ratios": [
            {"line": line, "ratio": round(best[arm] / best[against], 3), "limit": limit}
            for line, arm, against, limit in LINES
            if arm in best and against in best
        ],
        "anchor within its step": {
            name: round(one["seconds"] / (one["seconds"] - one["anchor_s"]), 4)
            for name, several in runs.items()
            for one in several[-1:]
            if one["anchor_s"]
        },
        "factors k=64": set_up("64"),
        "factors k=256": set_up("256"),
    }
    print(json.dumps(found, indent=2))
    return found


def in_own_process(name: str, steps: int, targets: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.tuning", "--arm", name, "--steps", str(steps), "--targets", targets]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise MidblockError(f"the arm {name} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
