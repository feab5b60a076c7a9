"""A run folder as `midblock analyze` leaves it: base and two tuned models, 12 blocks, references and weights."""

import json
from collections.abc import Callable
from pathlib import Path

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
