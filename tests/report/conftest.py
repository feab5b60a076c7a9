"""A run folder as `midblock analyze` leaves it: base and two tuned models, 12 blocks, references and weights."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from midblock.base import LayerRow, LayerTable

L = 12
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"'$\\frac{"
TUNED = ("sft", f"dpo {HOSTILE}")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norm")
UNPAIRED = ("prompt_entropy", "dataset_entropy", "effective_rank", "curvature", "sparsity", "l2_norm")
RISING = ("change_intensity_relative", "change_increment", "logit_kl", "procrustes")
FALLING = ("cka", "cka_debiased", "cosine_similarity", "logit_agreement")

RunMaker = Callable[..., Path]


def residual_rows() -> list[LayerRow]:
    rng = np.random.default_rng(0)
    rows: list[LayerRow] = []

    def curve(model: str, metric: str, values: np.ndarray, width: float = float("nan"), n: int = 50) -> None:
        for layer, value in zip(range(-1, L + 1), values, strict=True):
            rows.append(LayerRow(model, layer, L, metric, value, n, value - width, value + width, "gsm8k"))

    depth = np.linspace(0, 1, L + 2)
    for metric in UNPAIRED:
        base = 0.6 + 0.3 * np.sin(3 * depth) + rng.normal(0, 0.01, L + 2)
        curve("base", metric, base, 0.02)
        curve("base", metric + ".split_floor", np.abs(rng.normal(0, 0.02, L + 2)))
        for k, name in enumerate(TUNED):
            curve(name, metric, base + 0.03 * (k + 1) * depth, 0.02)
    for k, name in enumerate(TUNED):
        for metric in RISING:
            curve(name, metric, (0.02 + 0.1 * depth**2) * (k + 1), 0.002)
        for metric in FALLING:
            curve(name, metric, 1 - (0.0003 + 0.03 * depth**2) * (k + 1), 0.001)
        for metric, null in (("cka", 0.91), ("cka_debiased", 0.0)):
            curve(name, metric + ".null", null + rng.normal(0, 0.003, L + 2), 0.02)
    for metric in ("cka", "cka_debiased"):
        curve("base", metric + ".precision_floor", np.full(L + 2, 0.9999))
    return rows


def weight_rows() -> list[LayerRow]:
    rows: list[LayerRow] = []
    for k, name in enumerate(TUNED):
        places = [(layer, module) for layer in range(L) for module in (*PROJECTIONS, "attention", "mlp", "block")]
        for layer, module in [(-1, "embedding"), *places, (L, "head")]:
            value = 1e-3 * (k + 1) * (0.5 + np.exp(-(((layer - 6) / 3) ** 2)))
            for metric, factor in (("delta_rel", 1), ("delta_fro", 40), ("changed_fraction", 300)):
                rows.append(LayerRow(name, layer, L, metric, value * factor, 1000, module=module))
    return rows


RECORD = {
    "verb": "analyze",
    "status": "done",
    "started": "2026-05-02T10:11:12Z",
    "seed": 0,
    "versions": {"midblock": "0.1.0", "peft": None},
    "models": [
        {"name": "base", "reference": f"hub/{HOSTILE}", "role": "base", "parameters": 134515008, "dtype": "float32"}
    ],
    "data": {"reference": HOSTILE, "template": HOSTILE, "num_samples": 50},
    "phases": {"trace": {"seconds": 61.25, "peak_memory_mb": 1900}},
    "notes": [HOSTILE],
    "command": f"midblock analyze {HOSTILE}",
}
SUMMARY = {
    "headline": f"The middle moved {HOSTILE}",
    "models": [
        {
            "name": name,
            "reading": HOSTILE,
            "weight_depth": {"center": 0.5, "thirds": [0.2, 0.5, 0.3]},
            "representation_depth": {"center": 0.7, "thirds": [0.1, 0.3, 0.6]},
        }
        for name in TUNED
    ],
}


@pytest.fixture
def make_run(tmp_path: Path) -> RunMaker:
    """Write a run folder from rows; with `bare` nothing stands beside the table."""

    def make(rows: list[LayerRow] | None = None, bare: bool = False, name: str = "run") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        LayerTable.from_rows(residual_rows() + weight_rows() if rows is None else rows).write(folder)
        if not bare:
            (folder / "run.json").write_text(json.dumps(RECORD))
            (folder / "summary.json").write_text(json.dumps(SUMMARY))
            (folder / "samples.json").write_text(json.dumps([{"prompt": HOSTILE}]))
            (folder / "config.yaml").write_text(f"base: {HOSTILE}\n")
        return folder

    return make


@pytest.fixture
def residual() -> list[LayerRow]:
    return residual_rows()


@pytest.fixture
def weights() -> list[LayerRow]:
    return weight_rows()


@pytest.fixture
def hostile() -> str:
    return HOSTILE


TUNE_L, WIDTH, INNER = 30, 576, 1536
SHAPES = {
    "q_proj": (WIDTH, WIDTH), "k_proj": (192, WIDTH), "v_proj": (192, WIDTH), "o_proj": (WIDTH, WIDTH),
    "gate_proj": (INNER, WIDTH), "up_proj": (INNER, WIDTH), "down_proj": (WIDTH, INNER),
}  # fmt: skip
PART = {role: "attention" if role in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp" for role in SHAPES}


def tune_plan(method: str, ranks: dict[int, int], anchor: bool) -> dict:
    """`plan.json`: ranks of blocks with LoRA; with `full`, all projections of those blocks and the head."""
    targets, by_part = [], {"attention": 0, "mlp": 0}
    for block, rank in ranks.items():
        for role, (rows, columns) in SHAPES.items():
            if method == "lora" and PART[role] == "mlp":
                continue
            size = rank * (rows + columns) if method == "lora" else rows * columns
            adapter = {"rank": rank, "alpha": 2 * rank, "scale": 2.0} if method == "lora" else {}
            name = f"model.layers.{block}.{'self_attn' if PART[role] == 'attention' else 'mlp'}.{role}"
            targets.append(
                {"name": name, "block": block, "role": role, "shape": [rows, columns], "parameters": size}
                | dict.fromkeys(("rank", "alpha", "scale"))
                | adapter
            )
            by_part[PART[role]] += size
    if method == "full":
        by_part["head"] = 49152 * WIDTH
        head = {
            "name": "lm_head",
            "block": None,
            "role": "head",
            "shape": [49152, WIDTH],
            "parameters": by_part["head"],
        }
        targets.append(head | dict.fromkeys(("rank", "alpha", "scale")))
    trained = sum(by_part.values())
    blocks = list(ranks)
    held = {"k": "64", "lambda": 1.0, "scope": "block", "normalize": False, "weights": 42, "full_rank": [HOSTILE]}
    return {
        "layers": f"{blocks[0]}-{blocks[-1]}",
        "blocks": blocks,
        "total_blocks": TUNE_L,
        "method": method,
        "targets": targets,
        "trained_parameters": trained,
        "total_parameters": 134515008,
        "by_part": by_part,
        "memory": {"weights": 538060032, "gradients": 4 * trained, "optimizer": 8 * trained, "activations": 912680550,
                   "anchor": 3 * 2**20 if anchor else 0, "prefix_cache_disk": 0 if anchor else 310 * 2**20},
        "loss": "dft" if anchor else "nll",
        "anchor": held if anchor else None,
    }  # fmt: skip


def tune_log(steps: int, blocks: list[int], anchor: bool, every: int = 1) -> list[dict]:
    """`log.jsonl`: a loss that falls from 2.3 to 1.1 with the noise of small batches, as trained for two epochs."""
    rng = np.random.default_rng(1)
    lines = []
    for step in range(every, steps + 1, every):
        done = step / steps
        nll = 1.05 + 1.25 * np.exp(-5 * done) + rng.normal(0, 0.09)
        norms = {
            str(b): (0.05 + 0.2 * np.exp(-(((b - 8) / 4) ** 2))) * np.exp(-done + rng.normal(0, 0.2)) for b in blocks
        }
        line = {"step": step, "epoch": round(2 * done, 4), "loss": nll, "nll": nll, "grad_norm": sum(norms.values()),
                "learning_rate": 1e-4 * min(1, 20 * done) * (1 - done), "seconds": round(2.05 * step, 3),
                "tokens": 5120 * step, "gradient_by_block": norms}  # fmt: skip
        if anchor:
            line |= {"loss": 0.45 * nll, "penalty": 0.02 * (1 - np.exp(-3 * done)), "divergence": 0.3 * done**0.5}
        if step % (10 * every) == 0:
            line["eval_nll"] = 1.15 + 1.2 * np.exp(-5 * done)
        lines.append(line)
    return lines


def tune_rows(ranks: dict[int, int], method: str, name: str) -> list[LayerRow]:
    rows = []
    parts = ("attention", "block") if method == "lora" else ("attention", "mlp", "norm", "block")
    for block in ranks:
        for part in parts:
            pull = 0.05 + 0.2 * np.exp(-(((block - 8) / 4) ** 2)) * (0.6 if part == "mlp" else 1)
            for metric, factor in (("gradient_norm", 1), ("gradient_norm_first", 2.3), ("delta_rel", 0.02)):
                rows.append(LayerRow(name, block, TUNE_L, metric, factor * pull, 250, module=part))
    if method == "full":
        rows.append(LayerRow(name, TUNE_L, TUNE_L, "delta_rel", 0.004, 1000, module="head"))
    return rows


def write_tune_run(
    folder: Path,
    method: str = "lora",
    ranks: dict[int, int] | None = None,
    steps: int = 250,
    every: int = 1,
    anchor: bool = False,
    finished: bool = True,
    text: str = "gsm_symbolic",
) -> Path:
    """A run folder as `midblock tune` leaves it; one killed on the way lacks summary and table."""
    ranks = ranks or dict.fromkeys(range(6, 12), 42)
    folder.mkdir(parents=True)
    plan, lines = tune_plan(method, ranks, anchor), tune_log(steps, list(ranks), anchor, every)
    base = {"name": "base", "role": "base", "reference": "builtin:smollm2-135m-instruct", "parameters": 134515008,
            "dtype": "float32", "weight_hash": "5af571cbf074"}  # fmt: skip
    data = {"reference": text, "split": "train", "layout": "prompt/completion", "content_hash": "0b1c",
            "template": text, "num_samples": 2000, "max_length": 1024, "truncated": 3, "completion_lost": 1,
            "tokens": 1280000, "target_tokens": 402113}  # fmt: skip
    record = {
        **RECORD, "verb": "tune", "status": "done" if finished else "running", "models": [base], "data": data,
        "notes": [text], "command": f"midblock tune {text} --layers 6-11", "platform": {"python": "3.12"},
        "phases": {name: {"seconds": seconds, "peak_memory_mb": 1500}
                   for name, seconds in (("data", 4.2), ("plan", 1.3), ("train", 512.5), ("save", 2.1))},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "config.yaml").write_text(f"base: builtin:smollm2-135m-instruct\ndata: {text}\n")
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        tune_rows_table(folder, ranks, method)
        kind = "LoRA" if method == "lora" else "Full tuning"
        summary = {
            "headline": f"{kind} of blocks {plan['layers']} of 30 took the loss from 2.31 to 1.06",
            "models": [{"name": folder.name}],
            "loss": {"first": lines[0]["loss"], "last": lines[-1]["loss"]},
            "nll": {"first": lines[0]["nll"], "last": lines[-1]["nll"]},
            "tokens_per_second": 2497.3,
            "peak_memory_mb": 1631,
            "untouched": {"checked": 212, "changed": 0},
            "artifact": "adapter" if method == "lora" else "model",
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def tune_rows_table(folder: Path, ranks: dict[int, int], method: str) -> None:
    LayerTable.from_rows(tune_rows(ranks, method, folder.name)).write(folder)


@pytest.fixture
def make_tune_run(tmp_path: Path) -> RunMaker:
    """Write the folder of a tuning run; keywords as of `write_tune_run`."""

    def make(name: str = "tuned", **keywords: object) -> Path:
        return write_tune_run(tmp_path / name, **keywords)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """`runs.py` beside this file, which writes the folders of the other verbs; test files are no package."""
    spec = importlib.util.spec_from_file_location("report_runs", Path(__file__).with_name("runs.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
