"""Run folders as analyze, probe, swap, steer, flow and merge leave them: 30 blocks, a base and one tuned model."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from midblock.base import LayerRow, LayerTable

L = 30
DATA = "builtin:gsm_symbolic"
BASE = "builtin:smollm2-135m-instruct"
DEPTH = np.linspace(0, 1, L + 1)  # embedding and blocks


def write_run(
    folder: Path, verb: str, rows: Iterable[LayerRow], summary: dict, tuned: str = "sft", text: str = "",
    base: str = BASE, finished: bool = True,
) -> Path:  # fmt: skip
    """What all verbs write; an unfinished run has only its record."""
    folder.mkdir(parents=True)
    models = [
        {"name": "base", "role": "base", "reference": base, "parameters": 134515008, "dtype": "float32",
         "weight_hash": f"hash of {base}"},
        {"name": tuned, "role": "tuned", "reference": f"runs/{tuned}", "parameters": 134515008, "dtype": "float32",
         "weight_hash": "ed1983511faf"},
    ]  # fmt: skip
    if verb == "flow":
        models.pop()
    record = {
        "verb": verb, "status": "done" if finished else "running", "started": "2026-05-02T10:11:12Z", "seed": 0,
        "versions": {"midblock": "0.1.0"}, "platform": {"python": "3.12"}, "models": models,
        "command": f"midblock {verb} {base} runs/{tuned} {text}", "notes": [text] if text else [],
        "data": {"reference": text or DATA, "split": "test", "num_samples": 64, "content_hash": "0b1c"},
        "phases": {"measure": {"seconds": 41.5, "peak_memory_mb": 1900}},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(f"base: {base}\n")
    if finished:
        LayerTable.from_rows(rows).write(folder)
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def row(
    model: str, layer: int, metric: str, value: float, width: float = float("nan"), n: int = 64, **more: str
) -> LayerRow:
    return LayerRow(model, int(layer), L, metric, float(value), n, value - width, value + width, **more)


def write_analysis_run(folder: Path, tuned: str = "sft", seeds: int = 0, factor: float = 1.0, **more: object) -> Path:
    """Weights that moved evenly, states that changed most across the last ten blocks; with `seeds` samples' ranges."""
    rows = []
    for layer in range(-1, L + 1):
        change = factor * (0.01 + (0.03 if 20 <= layer < L else 0))
        for metric, value, width in (
            ("change_own", 0.5 * change, 0.001),
            ("change_increment", change, 0.002),
            ("change_intensity_relative", 0.01 + 0.003 * layer, 0.002),
            ("cka_debiased", 1 - 0.0003 * (layer + 2), 0.0004),
        ):
            if (metric == "change_increment" and layer == L) or (metric == "change_own" and not 0 <= layer < L):
                continue  # the final norm is no block that adds
            rows.append(row(tuned, layer, metric, value, width, dataset=DATA))
            if seeds:
                rows.append(row(tuned, layer, f"{metric}.seeds", value, 3 * width, n=seeds, dataset=DATA))
                rows += [row(tuned, layer, f"{metric}.seed{k}", value, width, dataset=DATA) for k in range(1, seeds)]
        for module in ("attention", "mlp", "block") if 0 <= layer < L else ():
            rows.append(row(tuned, layer, "delta_rel", factor * (6e-4 + 1e-5 * (layer % 7)), module=module))
    text = more.get("text", "")
    headline = f"{tuned} changes states most in the upper third (60 %); its weights moved evenly. {text}".strip()
    entry = {
        "name": tuned, "reading": headline,
        "weight_depth": {"center": 0.5, "thirds": [0.33, 0.34, 0.33], "peak_block": 6},
        "own_depth": {"center": 0.7, "thirds": [0.15, 0.15, 0.7], "peak_block": 20},
        "representation_depth": {"center": 0.7, "thirds": [0.15, 0.15, 0.7], "peak_block": 20},
    }  # fmt: skip
    return write_run(folder, "analyze", rows, {"headline": headline, "models": [entry]}, tuned, **more)


def write_probe_run(folder: Path, tuned: str = "sft", seed: int = 0, **more: object) -> Path:
    rng = np.random.default_rng(seed)
    rows, models = [], []
    for name, rise, top in (("base", 0.85, 0.56), (tuned, 0.77, 0.68)):
        accuracy = top / (1 + np.exp(-16 * (DEPTH - rise))) + rng.normal(0, 0.006, L + 1)
        accuracy = np.clip(accuracy, 0, 1)
        nll = 1.1 + 9.5 * (1 - accuracy / accuracy[-1]).clip(0) ** 0.8 + (0.4 if name == "base" else 0)
        for layer in range(-1, L):
            for metric, value, width in (
                ("exit_accuracy", accuracy[layer + 1], 0.02),
                ("exit_nll", nll[layer + 1], 0.12),
                ("exit_perplexity", np.exp(nll[layer + 1]), 1.0),
            ):
                rows.append(row(name, layer, metric, value, width, dataset=DATA))
        layer = int(np.argmax(accuracy >= accuracy[-1] / 2)) - 1
        models.append(
            {"name": name, "reading": f"{name} reaches half of its final accuracy at block {layer} of {L}.",
             "emergence": {"accuracy": {"layer": layer, "depth": (layer + 1) / L, "low": layer - 1, "high": layer + 1}},
             "final": {"accuracy": {"value": accuracy[-1], "low": accuracy[-1] - 0.02, "high": accuracy[-1] + 0.02},
                       "nll": {"value": nll[-1], "low": nll[-1] - 0.1, "high": nll[-1] + 0.1}}}
        )  # fmt: skip
    text = more.get("text", "")
    headline = f"Answers emerge late: half of the final accuracy at block 24 in base and 22 in {tuned}. {text}".strip()
    return write_run(folder, "probe", rows, {"headline": headline, "models": models}, tuned, **more)


def write_swap_run(folder: Path, tuned: str = "sft", segments: int = 5, **more: object) -> Path:
    rows, cells, references = [], [], []
    levels = {
        ("base", "base_head"): 0.55,
        ("base", "tuned_head"): 0.56,
        (tuned, "tuned_head"): 0.68,
        (tuned, "base_head"): 0.66,
    }
    for (host, head), level in levels.items():
        estimate = {"value": level, "low": level - 0.02, "high": level + 0.02}
        nll = {"value": 2 - level, "low": 1.97 - level, "high": 2.03 - level}
        references.append(
            {"body": host, "head": head, "accuracy": estimate, "nll": nll,
             "perplexity": {"value": float(np.exp(2 - level))}}
        )  # fmt: skip
        rows.append(row(host, L, "swap_accuracy.reference", level, 0.02, dataset=DATA, module=head))
        for k in range(segments):
            first, last = k * L // segments, (k + 1) * L // segments - 1
            middle = np.exp(-((k / (segments - 1) - 0.55) ** 2) / 0.05)
            change = 0.05 * middle * (1 if host == "base" else -1) - 0.008
            value = level + change
            cells.append({
                "host": host, "donor": tuned if host == "base" else "base", "head": head, "first": first, "last": last,
                "blocks": f"{first}-{last}",
                "accuracy": {"value": value, "low": value - 0.02, "high": value + 0.02, "change": change,
                             "change_low": change - 0.012, "change_high": change + 0.012},
                "nll": {"value": 2 - value, "low": 1.97 - value, "high": 2.03 - value, "change": -change,
                        "change_low": -change - 0.012, "change_high": -change + 0.012},
                "perplexity": {"value": float(np.exp(2 - value)), "low": 1, "high": 9},
            })  # fmt: skip
            for metric, number in (("accuracy", value), ("nll", 2 - value), ("accuracy_change", change)):
                rows.append(row(host, last, f"swap_{metric}", number, 0.02, dataset=DATA, module=head))
    summary = {
        "headline": f"Blocks 12-17 of {tuned} carry most of the gain: put into the base they raise accuracy by 0.04.",
        "models": [], "base": "base", "tuned": tuned, "mode": "segments", "depth": None, "references": references,
        "cells": cells,
        "shape": [{"host": "base", "head": "base_head", "metric": "accuracy", "contrast": 0.03, "low": 0.01,
                   "high": 0.05, "verdict": "inverted U"}],
    }  # fmt: skip
    return write_run(folder, "swap", rows, summary, tuned, **more)


def write_steer_run(folder: Path, tuned: str = "sft", **more: object) -> Path:
    text = str(more.get("text", ""))
    rng = np.random.default_rng(3)
    rows = []
    for layer in range(L):
        pull = -0.09 * np.exp(-(((layer - 15) / 6) ** 2)) + rng.normal(0, 0.004)
        rows += [
            row(tuned, layer, "steer_norm", 0.4 + 0.3 * layer),
            row(tuned, layer, "steer_norm_relative", 0.02 + 0.05 * (layer / L) ** 2),
            row(tuned, layer, "steer_explained", 0.5 - 0.2 * layer / L),
            row(tuned, layer, "steer_nll_change", pull, 0.015, dataset=DATA),
            row(tuned, layer, "steer_nll_change.random", 0.004 + 0.012 * (layer / L) ** 2, 0.006, dataset=DATA),
        ]
    alphas = [
        {"alpha": alpha, "steered": {"value": 1.61 - gain, "low": 1.56 - gain, "high": 1.66 - gain},
         "change": {"value": -gain, "low": -gain - 0.02, "high": -gain + 0.02},
         "random_change": {"value": 0.01 * alpha, "low": 0.0, "high": 0.02 * alpha}, "gap_closed": closed}
        for alpha, gain, closed in ((0.5, 0.06, 0.13), (1.0, 0.11, 0.24), (2.0, 0.08, None))
    ]  # fmt: skip
    summary = {
        "headline": f"Adding {tuned}'s mean shift at blocks 10-19 closes 24 % of the gap in NLL; random ones none.",
        "models": [], "tuned": tuned, "blocks": "10-19", "kind": "mean_shift",
        "base": {"value": 1.61, "low": 1.56, "high": 1.66},
        "tuned_nll": {"value": 1.15, "low": 1.1, "high": 1.2}, "alphas": alphas,
    }  # fmt: skip
    write_run(folder, "steer", rows, summary, tuned, **more)
    if more.get("finished", True):
        prompts = [
            "A baker makes 12 loaves an hour for 5 hours and sells 41 of them. How many loaves are left?",
            "Maria has 3 boxes with 14 pens each. She gives away 9 pens. How many pens does she have now?",
            "A train leaves with 220 people. 35 get off, 18 get on. How many are on it?",
            "What is 15 % of 240?",
        ]
        steered = "12 × 5 = <<12*5=60>>60 loaves.\n60 − 41 = <<60-41=19>>19.\n#### 19"
        texts = [
            {"prompt": f"{prompt} {text}",
             "base": f"To solve this, let us think step by step. The first thing is {text}" + " and so on" * 30,
             "tuned": f"{steered} {text}", "steered": {"0.5": f"Let us see. {text}", "1": steered, "2": "12 12 12 12"}}
            for prompt in prompts
        ]  # fmt: skip
        (folder / "texts.json").write_text(json.dumps(texts))
    return folder


def write_flow_run(folder: Path, steps: int = 20, **more: object) -> Path:
    rng = np.random.default_rng(5)
    rows, lines = [], []
    for layer in range(L):
        for part, share in (
            ("block", 1.0),
            ("mlp", 0.8),
            ("norm", 0.05),
            ("q_proj", 0.3),
        ):
            norm = share * (0.12 + 0.3 * np.exp(-layer / 5) + 0.1 * np.exp(-(((layer - 27) / 2) ** 2)))
            agreement = 0.12 + 0.2 * np.exp(-(((layer - 16) / 7) ** 2)) + rng.normal(0, 0.01)
            rows += [
                row(folder.name, layer, "gradient_norm", norm, 0.08 * norm, module=part),
                row(folder.name, layer, "gradient_norm_first", 1.5 * norm, module=part),
                row(folder.name, layer, "gradient_agreement", agreement, 0.03, module=part),
                row(folder.name, layer, "gradient_snr", agreement / (1 - agreement), 0.05, module=part),
                row(folder.name, layer, "delta_rel", 1e-4 * (1 + 0.2 * np.sin(layer / 4)) * share, module=part),
            ]
    for step in range(1, steps + 1):
        norms = {str(b): (0.12 + 0.3 * np.exp(-b / 5)) * np.exp(rng.normal(0, 0.2) - step / steps) for b in range(L)}
        lines.append({"step": step, "loss": 1.7 - 0.4 * step / steps + rng.normal(0, 0.05), "gradient_by_block": norms})
    summary = {
        "headline": f"Gradients are largest in block 0 and agree most in block 16 ({steps} steps, full tuning).",
        "models": [], "method": "full", "steps": steps, "loss": {"first": 1.72, "last": 1.31},
        "peak": {"gradient_norm": 0, "gradient_agreement": 16, "delta_rel": 6},
    }  # fmt: skip
    more.setdefault("tuned", folder.name)
    write_run(folder, "flow", rows, summary, **more)
    if more.get("finished", True):
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_merge_run(folder: Path, tuned: str = "sft", **more: object) -> Path:
    alphas = [min(1.0, max(0.0, (layer - 8) / 10)) for layer in range(L)]
    ends = [(-1, 0.0), *enumerate(alphas), (L, 1.0)]
    rows = [row(folder.name, layer, "merge_alpha", alpha, module="block") for layer, alpha in ends]
    summary = {
        "headline": "base and sft blended from block 9 (α 0.1) to block 18 (α 1): 134.5 M parameters in 272 tensors.",
        "models": [], "base": BASE, "tuned": f"runs/{tuned}", "alphas": alphas, "embedding": 0.0, "head": 1.0,
        "overrides": {}, "tensors": 272, "copied": 80, "bytes": 538060032,
    }  # fmt: skip
    return write_run(folder, "merge", rows, summary, tuned, **more)


def write_all(folder: Path, **more: object) -> list[Path]:
    """An analysis and one run of each of the five verbs."""
    names = ("analyze", *WRITERS)
    writers = (write_analysis_run, *WRITERS.values())
    return [write(folder / name, **more) for name, write in zip(names, writers, strict=True)]


WRITERS = {
    "probe": write_probe_run,
    "swap": write_swap_run,
    "steer": write_steer_run,
    "flow": write_flow_run,
    "merge": write_merge_run,
}
