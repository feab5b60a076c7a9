"""The checks of `benchmarks.gpu`: each a function of a stage that says what it found, against a stated tolerance."""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.analysis import bare_forwards
from benchmarks.carving import batch, carved
from benchmarks.erasing import place_of, prepared
from benchmarks.growth import WORDS, write_models
from benchmarks.partner import BASE, make_partner
from benchmarks.tuning import WARM_UP, Clock, Course, plain_trl, tune_arm
from midblock import analyze, evaluate, load_pair, merge, swap, tune
from midblock.analysis.prompts import prepare_prompts
from midblock.analysis.settings import AnalysisSettings
from midblock.base import LayerTable, generator
from midblock.checkpoints import LoadSettings, load_model, open_checkpoint

SAME = 2e-3  # relative to the largest value of a metric, float32 on both sides: kernels add in another order
LOSSES = 2e-3  # of a loss in float32, after a few steps
COARSE = 5e-2  # of a loss in bfloat16
LONGEST = 256  # tokens of the 48 words of a row, by any of the tokenizers
ANALYSIS, STEP_2K, STEP_8K = 1.20, 1.02, 1.02  # limits of ratios
HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32_000}
# width, blocks, and what else differs from growth's own shape
SHAPES: Mapping[str, tuple[int, int, dict[str, int]]] = {
    "small": (32, 4, {"max_position_embeddings": 16_384}),
    "1B": (2048, 16, {**HEADS, "intermediate_size": 8192, "max_position_embeddings": 16_384}),
    "7B": (4096, 32, {**HEADS, "intermediate_size": 11_008, "max_position_embeddings": 16_384}),
}


@dataclass(frozen=True)
class Verdict:
    """What became of a check.

    Attributes:
        state: "passed", "missed" (it ran, and a limit was missed), "skipped", "failed" or "not run".
    """

    name: str
    state: str
    told: str
    seconds: float = 0.0
    peak: str = ""

    @property
    def line(self) -> str:
        return f"{self.name}: {self.state}, {self.told} ({self.seconds:.0f} s)"


@dataclass(frozen=True)
class Stage:
    """Where checks run.

    Attributes:
        scratch: what one check wrote is there for the next.
        small: pico shapes instead of those of 1B and 7B.
    """

    scratch: Path
    device: str
    small: bool

    def pair(self, shape: str) -> tuple[str, str]:
        """A base and a tuned model of a shape, made once."""
        shape = "small" if self.small else shape
        folder = self.scratch / shape
        if not (folder / "sft" / "tokenizer.json").exists():
            width, blocks, changes = SHAPES[shape]
            dtype = torch.float32 if self.small else torch.bfloat16
            write_models(folder, width, blocks, device=self.device, dtype=dtype, **changes)
        return str(folder / "base"), str(folder / "sft")

    def embedded(self) -> tuple[str, str]:
        """The embedded model and its partner; pico models where the run is small."""
        if self.small:
            return self.pair("1B")
        folder = self.scratch / "partner"
        return BASE, str(folder if folder.exists() else make_partner(folder))

    def rows(self, count: int, tokens: int) -> str:
        """Prompts with completions, of so many words together."""
        path = self.scratch / f"rows-{count}-{tokens}.jsonl"
        if not path.exists():
            stream = generator(0, "gpu", tokens)
            lines = ([f"w{word}" for word in stream.integers(WORDS, size=tokens)] for _ in range(count))
            half = tokens // 2
            parts = ({"prompt": " ".join(words[:half]), "completion": " " + " ".join(words[half:])} for words in lines)
            path.write_text("".join(json.dumps(each) + "\n" for each in parts))
        return str(path)

    @property
    def peak(self) -> str:
        """Most memory of the device that was in use, as torch counts it."""
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if self.device.startswith("cuda") else "–"

    def verdict(self, name: str, passed: bool, told: str) -> Verdict:
        return Verdict(name, "passed" if passed else "missed", told, peak=self.peak)


def largest_difference(one: LayerTable, other: LayerTable) -> tuple[float, str]:
    """The largest difference of a value in two tables of the same rows, relative to its metric's largest value."""
    keys = ["model", "dataset", "layer", "module", "metric"]
    both = one.frame.merge(other.frame, on=keys, suffixes=("", "_other"), how="outer", indicator=True)
    if not (both["_merge"] == "both").all():
        return math.inf, "rows are lacking"
    both["off"] = (both.value - both.value_other).abs() / both.groupby("metric", observed=True).value.transform(
        lambda values: max(values.abs().max(), 1e-6)
    )
    plain = both[~both.metric.str.contains(".", regex=False) & both.off.notna()]
    worst = int(plain.off.to_numpy().argmax())
    return float(plain.off.iloc[worst]), str(plain.metric.iloc[worst])


def same_analysis(stage: Stage) -> Verdict:
    base, tuned = stage.embedded()
    data, asked = (
        stage.rows(24, 48),
        {"num_samples": 24, "num_token_samples": 8, "precision_floor": False, "weights": False},
    )
    tables = [
        analyze(load_pair(base, tuned, device=each, dtype="float32"), data, **asked) for each in (stage.device, "cpu")
    ]
    off, metric = largest_difference(*tables)
    return stage.verdict("analyze = CPU", off <= SAME, f"largest difference {off:.1e} ({metric}), tolerance {SAME}")


def same_by_blocks(stage: Stage) -> Verdict:
    """Block by block with the weights on the disk, against whole models on the device."""
    base, tuned = stage.pair("1B")
    # weights are compared on the CPU either way
    data, asked = stage.rows(24, 48), {"num_samples": 24, "num_token_samples": 8, "weights": False}
    loading = {"device": stage.device, "dtype": "float32" if stage.small else "bfloat16"}
    tables, walls = [], []
    for cap in (None, "16GB"):
        pair = load_pair(base, tuned, **loading, max_memory=cap)
        begun = time.perf_counter()
        tables.append(analyze(pair, data, **asked))
        walls.append(time.perf_counter() - begun)
    off, metric = largest_difference(*tables)
    told = f"largest difference {off:.1e} ({metric}), tolerance {SAME}; {walls[1]:.1f} s, whole models {walls[0]:.1f} s"
    return stage.verdict("analyze by blocks = whole models", off <= SAME, f"{told}, both with what loading takes")


def same_swap(stage: Stage) -> Verdict:
    base, tuned = stage.embedded()
    data, asked = stage.rows(24, 48), {"num_samples": 8, "segments": "2"}
    tables = [
        swap(load_pair(base, tuned, device=each, dtype="float32"), data, **asked) for each in (stage.device, "cpu")
    ]
    off, metric = largest_difference(*tables)
    return stage.verdict("swap = CPU", off <= SAME, f"largest difference {off:.1e} ({metric}), tolerance {SAME}")


def same_merge(stage: Stage) -> Verdict:
    base, tuned = stage.embedded()
    folder = merge(base, tuned, "0.5", output_dir=stage.scratch / "merged", overwrite=True)
    ids = torch.randint(3, WORDS, (2, 32), generator=torch.Generator().manual_seed(0))
    found = []
    for each in (stage.device, "cpu"):
        model = load_model(open_checkpoint(str(folder)), LoadSettings(device=each, dtype="float32"))
        with torch.inference_mode():
            found.append(model(input_ids=ids.to(each)).logits.cpu())
    off = float((found[0] - found[1]).abs().max() / found[1].abs().max())
    return stage.verdict(
        "merge = CPU", off <= SAME, f"logits of the merged model differ by {off:.1e}, tolerance {SAME}"
    )


def same_evaluation(stage: Stage) -> Verdict:
    base, tuned = stage.embedded()
    path = stage.scratch / "choices.jsonl"
    stream = generator(0, "choices")
    words = [[f"w{word}" for word in row] for row in stream.integers(WORDS, size=(16, 12))]
    path.write_text("".join(json.dumps({"text": " ".join(row)}) + "\n" for row in words))
    found = [
        evaluate([base, tuned], f"perplexity:{path}", loading={"device": each, "dtype": "float32"}).scores
        for each in (stage.device, "cpu")
    ]
    ours, theirs = (each.value.to_numpy(dtype=float, na_value=math.nan) for each in found)
    off = float(abs(ours - theirs).max() / abs(theirs).max())
    return stage.verdict("evaluate = CPU", off <= SAME, f"scores differ by {off:.1e}, tolerance {SAME}")


def tuned_losses(stage: Stage, device: str, **options: Any) -> list[float]:
    """Losses of six steps on the embedded pair's base."""
    folder = stage.scratch / f"tune-{abs(hash((device, repr(sorted(options.items())))))}"
    asked = {"max_steps": 6, "per_device_train_batch_size": 2, "max_length": LONGEST, "save_steps": 0, **options}
    tune(stage.embedded()[0], stage.rows(24, 48), output_dir=folder, overwrite=True, device=device, **asked)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [float(line["loss"]) for line in lines if "loss" in line]


def same_tuning(stage: Stage, name: str, tolerance: float, **options: Any) -> Verdict:
    """A method's losses there, in its own type, against the CPU's in float32."""
    theirs = tuned_losses(stage, "cpu", **{**options, "dtype": "float32"})
    ours = tuned_losses(stage, stage.device, **options)
    off = max(abs(one - other) / abs(other) for one, other in zip(ours, theirs, strict=True))
    told = f"{len(ours)} losses differ by at most {off:.1e} from the CPU's in float32, tolerance {tolerance}"
    return stage.verdict(name, off <= tolerance, told)


def same_prefix(stage: Stage) -> Verdict:
    given = {"layers": "0011", "dtype": "float32", "num_train_epochs": 2, "max_steps": -1}
    on, off = (tuned_losses(stage, stage.device, prefix_cache=each, **given) for each in ("on", "off"))
    differ = max(abs(one - other) / abs(other) for one, other in zip(on, off, strict=True))
    told = f"{len(on)} losses with and without the cache differ by {differ:.1e}, tolerance {LOSSES}"
    return stage.verdict("tune, prefix cache", differ <= LOSSES, told)


def four_bit(stage: Stage) -> Verdict:
    if importlib.util.find_spec("bitsandbytes") is None or stage.device == "cpu":
        return Verdict("tune, 4 bits", "skipped", "bitsandbytes or the GPU it needs is not there")
    losses = tuned_losses(stage, stage.device, load_in_4bit=True, dtype="bfloat16")
    passed = all(map(math.isfinite, losses)) and losses[-1] < losses[0] * 1.2
    return stage.verdict("tune, 4 bits", passed, f"losses {losses[0]:.3f} to {losses[-1]:.3f}")


def carve_steps(stage: Stage) -> Verdict:
    found = []
    for device in (stage.device, "cpu"):
        settings = LoadSettings(device="cpu", dtype="float32")
        model, carver = carved(load_model(open_checkpoint(stage.embedded()[0]), settings))
        model.to(device)
        carver.begin(10**6 + 1, torch.device(device), stage.scratch)
        ids = batch(model).to(device)
        adam = torch.optim.AdamW([each.parameter for each in carver.weights.values()], lr=1e-4, weight_decay=0.0)
        losses = []
        for _ in range(3):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            losses.append(float(loss.detach()))
            carver.before_step(losses[-1])
            adam.step()
            carver.after_step(adam)
            adam.zero_grad()
        found.append(losses)
    off = max(abs(one - other) / abs(other) for one, other in zip(*found, strict=True))
    return stage.verdict(
        "carve, 3 steps", off <= LOSSES, f"losses differ by {off:.1e} from the CPU's, tolerance {LOSSES}"
    )


def erase_steps(stage: Stage) -> Verdict:
    found = []
    for device in (stage.device, "cpu"):
        settings = LoadSettings(device=device, dtype="float32")
        training = prepared(load_model(open_checkpoint(stage.embedded()[0]), settings), 4, 4, words=WORDS)
        at = place_of(training)
        for _ in range(3):
            training._step(at)
        found.append(at.parameter.detach().cpu())
    off = float((found[0] - found[1]).abs().max() / found[1].abs().max())
    return stage.verdict(
        "erase, 3 steps", off <= SAME, f"soft tokens differ by {off:.1e} from the CPU's, tolerance {SAME}"
    )


def analysis_ratio(stage: Stage, shape: str) -> Verdict:
    base, tuned = stage.pair(shape)
    data = stage.rows(24 if stage.small else 200, 48 if stage.small else 120)
    pair = load_pair(base, tuned, device=stage.device, dtype="float32" if stage.small else "bfloat16")
    asked: dict[str, Any] = {"metrics": "p1", "weights": False, "tokens": "all", "batch_tokens": 8192}
    asked |= {"num_samples": 24, "num_token_samples": 8} if stage.small else {}
    prompts = prepare_prompts(pair, data, AnalysisSettings(**asked), views=False)
    batches = [*prompts.deep, *prompts.pooled]
    settle(stage, partial(bare_forwards, pair, batches))
    settle(stage, partial(analyze, pair, data, **asked | {"num_samples": 8, "num_token_samples": 8}))  # libraries load
    bare = settle(stage, partial(bare_forwards, pair, batches))
    folder = stage.scratch / f"analysis-{shape}"
    wall = settle(stage, partial(analyze, pair, data, output_dir=folder, overwrite=True, **asked))
    bare = (bare + settle(stage, partial(bare_forwards, pair, batches))) / 2
    phases = json.loads((folder / "run.json").read_text())["phases"]
    lean = settle(stage, partial(analyze, pair, data, **asked, precision_floor=False))
    parts = ", ".join(f"{name} {phases[name]['seconds']:.2f}" for name in ("measure", "evaluate"))
    told = f"analyze {wall:.2f} s ({parts}), without the precision floor {lean:.2f} s, bare forwards {bare:.2f} s"
    told += f", ratio {wall / bare:.2f}, limit {ANALYSIS}"
    return stage.verdict(f"analysis over bare forwards, {shape}", wall / bare <= ANALYSIS, told)


def settle(stage: Stage, act: Callable[[], object]) -> float:
    """Seconds of an act, until the device is through with it."""
    begun = time.perf_counter()
    act()
    if stage.device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - begun


def step_ratio(stage: Stage, shape: str, tokens: int, limit: float) -> Verdict:
    base, _ = stage.pair(shape)
    length, steps = (64, 6) if stage.small else (tokens, 10)
    dtype = "float32" if stage.small else "bfloat16"
    course = Course(base, stage.rows(steps, length - 2), length, 1, stage.device, dtype)
    arms = {
        "midblock": lambda clock: tune_arm(clock, dict(UNIFORM), steps, "all", course),
        "PEFT + TRL": lambda clock: plain_trl(clock, steps, "all", course),
    }
    found, peaks = dict.fromkeys(arms, math.inf), dict.fromkeys(arms, "")
    for name in (*arms, *arms):  # in turns, so that neither has the cold start to itself
        if stage.device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        clock = Clock()
        arms[name](clock)
        found[name], peaks[name] = min(found[name], statistics.median(clock.steps[WARM_UP - 1 :])), stage.peak
    ratio = found["midblock"] / found["PEFT + TRL"]
    each = ", ".join(f"{name} {seconds * 1000:.0f} ms, {peaks[name]}" for name, seconds in found.items())
    return stage.verdict(
        f"step of {tokens} tokens over PEFT + TRL, {shape}", ratio <= limit, f"{each}; ratio {ratio:.3f}, limit {limit}"
    )


UNIFORM = {"lora_r": 16, "target_modules": "attention", "learning_rate": 1e-4}


def two_devices(stage: Stage) -> Verdict:
    name, there = "tune on two devices, NCCL", torch.cuda.device_count()
    if there < 2 and stage.device != "cpu":
        return Verdict(name, "skipped", f"{there} device is there")
    base, data = stage.embedded()[0], stage.rows(24, 48)
    asked = [
        "--max-steps",
        "4",
        "--per-device-train-batch-size",
        "2",
        "--max-length",
        str(LONGEST),
        "--save-steps",
        "0",
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "midblock"]
    command += ["tune", base, "--data", data, *asked, "--dtype", "float32", "--output-dir", str(stage.scratch / "two")]
    command += ["--overwrite", "--device", "cpu" if stage.device == "cpu" else "auto"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return Verdict(name, "failed", (done.stderr.strip().splitlines() or ["no word"])[-1][:300])
    one = tuned_losses(stage, stage.device, dtype="float32", max_steps=4, per_device_train_batch_size=4)
    lines = [json.loads(line) for line in (stage.scratch / "two" / "log.jsonl").read_text().splitlines()]
    two = [float(line["loss"]) for line in lines if "loss" in line]
    off = max(abs(a - b) / abs(b) for a, b in zip(two, one, strict=True))
    return stage.verdict(name, off <= LOSSES, f"losses differ by {off:.1e} from one process', tolerance {LOSSES}")


CHECKS: Mapping[str, Callable[[Stage], Verdict]] = {
    "analysis-1B": partial(analysis_ratio, shape="1B"),
    "analysis-7B": partial(analysis_ratio, shape="7B"),
    "step-2k": partial(step_ratio, shape="1B", tokens=2048, limit=STEP_2K),
    "step-8k": partial(step_ratio, shape="1B", tokens=8192, limit=STEP_8K),
    "analyze": same_analysis,
    "analyze-blocks": same_by_blocks,
    "swap": same_swap,
    "merge": same_merge,
    "evaluate": same_evaluation,
    "tune-lora": partial(same_tuning, name="tune, LoRA float32", tolerance=LOSSES, dtype="float32"),
    "tune-bf16": partial(same_tuning, name="tune, LoRA bfloat16", tolerance=COARSE, dtype="bfloat16"),
    "tune-full": partial(
        same_tuning, name="tune, full", tolerance=LOSSES, dtype="float32", method="full", learning_rate=1e-6
    ),
    "tune-rpsft": partial(
        same_tuning, name="tune, full with RPSFT", tolerance=LOSSES, dtype="float32", method="full", anchor="rpsft",
        anchor_k="8", learning_rate=1e-6,
    ),
    "tune-prefix": same_prefix,
    "tune-4bit": four_bit,
    "carve": carve_steps,
    "erase": erase_steps,
    "two-devices": two_devices,
}  # fmt: skip
