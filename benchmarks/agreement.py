"""Every metric against an independent float64 computation, on the embedded model's real states and weights.

The reference takes transformers' own `output_hidden_states`, keeps everything in memory and uses NumPy, SciPy and
scikit-learn; it shares no arithmetic with midblock. Printed: the largest relative difference over layers and models.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy import linalg, special
from scipy.stats import entropy as shannon
from sklearn.neighbors import NearestNeighbors

from benchmarks.partner import BASE
from midblock import METRICS, LayerTable, analyze, load_pair
from midblock.analysis.prompts import prepare_prompts
from midblock.analysis.settings import AnalysisSettings
from midblock.checkpoints import Pair, open_checkpoint
from midblock.data import Batch

Array = np.ndarray
PROMPTS = 48
BLOCKS = (0, 14, 29)


def spectrum(X: Array) -> Array:
    return np.linalg.svd(X, compute_uv=False) ** 2


def unit(X: Array) -> Array:
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def of_tokens(H: Array) -> dict[str, float]:
    n, D = H.shape
    p = spectrum(unit(H))
    p = p / p.sum()
    steps = np.diff(H, axis=0)
    length = np.linalg.norm(steps, axis=1)
    ok = (length[:-1] > 0) & (length[1:] > 0)
    cosine = (steps[:-1] * steps[1:]).sum(1)[ok] / (length[:-1] * length[1:])[ok]
    return {
        "prompt_entropy": shannon(p) / np.log(min(n, D)),
        "prompt_entropy_renyi2": -np.log((p**2).sum()) / np.log(min(n, D)),
        "curvature": np.arccos(np.clip(cosine, -1, 1)).mean() / np.pi if ok.any() else np.nan,
        "sparsity": (np.abs(H) < 0.01 * np.abs(H).max()).mean(),
    }


def of_prompts(X: Array) -> dict[str, float]:
    N, D = X.shape
    sigma = np.linalg.svd(X, compute_uv=False)
    norms = np.linalg.norm(X, axis=1)
    rank = np.exp(shannon(sigma**2))
    near = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(X).kneighbors(X)[0]
    return {
        "dataset_entropy": shannon(spectrum(unit(X))) / np.log(min(N, D)),
        "effective_rank": rank,
        "effective_rank_normalized": rank / min(N, D),
        "effective_rank_centered": np.exp(shannon(spectrum(X - X.mean(0)))),
        "l2_norm": norms.mean(),
        "spectral_norm": sigma[0],
        "condition_number": sigma[0] / sigma[sigma > sigma[0] * max(X.shape) * np.finfo(float).eps].min(),
        "rank_deficiency": (sigma <= 0.01 * sigma[0]).mean(),
        "gini": np.abs(norms[:, None] - norms[None]).mean() / (2 * norms.mean()),
        "intrinsic_dimension": N / np.log(near[:, 2] / near[:, 1]).sum(),
    }


def hsic(K: Array, L: Array) -> float:
    """Song et al. 2012, equation 5, as printed."""
    n = len(K)
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    one = np.ones(n)
    middle = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    return (np.trace(K @ L) + middle - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3))


def of_pair(A: Array, B: Array, received: Array | None) -> dict[str, float]:
    N = len(A)
    H = np.eye(N) - 1 / N
    K, L = H @ A @ A.T @ H, H @ B @ B.T @ H
    a, b = A - A.mean(0), B - B.mean(0)
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    scale = np.linalg.norm(A, axis=1).mean()
    change = np.linalg.norm(B - A, axis=1).mean()
    shift = np.linalg.norm(B.mean(0) - A.mean(0))
    a0, b0 = unit(A - A.mean(0)), unit(B - B.mean(0))
    found = {
        "cka": np.trace(K @ L) / np.sqrt(np.trace(K @ K) * np.trace(L @ L)),
        "cka_debiased": hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L)),
        "cosine_similarity": (unit(A) * unit(B)).sum(1).mean(),
        "cosine_centered": (a0 * b0).sum(1).mean(),
        "change_intensity": change,
        "change_intensity_relative": change / scale,
        "mean_shift": shift,
        "mean_shift_relative": shift / scale,
        "procrustes": 2 - 2 * linalg.orthogonal_procrustes(a, b)[1],
    }
    if received is not None:
        found["change_increment"] = np.linalg.norm(B - A - received, axis=1).mean() / scale
    return found


def of_views(views: Sequence[Array]) -> dict[str, float]:
    V = np.stack(views)
    K, n, D = V.shape
    means = V.mean(0)
    deviation = (V - means).reshape(-1, D)
    within = deviation.T @ deviation / (K * n) + 1e-4 * np.eye(D)
    centred = means - means.mean(0)
    root = linalg.inv(linalg.sqrtm(within).real)
    lidar = np.linalg.eigvalsh(root @ (centred.T @ centred / n) @ root).clip(0)
    first, second = unit(V[0]), unit(V[1])
    scores = first @ second.T / 0.1
    return {
        "lidar": shannon(lidar),
        "dime": abs(shannon(spectrum(first)) - shannon(spectrum(second))),
        "infonce": (special.logsumexp(scores, axis=1) - np.diag(scores)).mean(),
    }


def of_weights(before: Array, after: Array, k: int) -> dict[str, float]:
    change = after - before
    sigma = np.linalg.svd(change, compute_uv=False)
    U, _, Vt = np.linalg.svd(before, full_matrices=False)
    P, _, Qt = np.linalg.svd(after, full_matrices=False)
    angles = np.concatenate([linalg.subspace_angles(U[:, :k], P[:, :k]), linalg.subspace_angles(Vt[:k].T, Qt[:k].T)])
    fro = np.linalg.norm(change)
    return {
        "delta_fro": fro,
        "delta_rel": fro / np.linalg.norm(before),
        "changed_fraction": (change != 0).mean(),
        "delta_spectral": sigma[0],
        "delta_stable_rank": fro**2 / sigma[0] ** 2,
        "delta_effective_rank": np.exp(shannon(sigma**2)),
        "subspace_rotation_max": angles.max(),
        "subspace_rotation_mean": angles.mean(),
        "block_drift": np.linalg.norm(U[:, :k].T @ change @ Vt[:k].T) / fro,
    }


def hidden(model: Any, batch: Batch) -> list[Array]:
    """Layers -1…L-2 and L (transformers does not give the last block's own output), float64 copies."""
    with torch.inference_mode():
        states = model.model(input_ids=batch.input_ids, output_hidden_states=True, use_cache=False).hidden_states
    return [layer.double().numpy() for layer in states]


def lens(models: Sequence[Any], states: Sequence[Array], n: int, final: bool, positions: int) -> tuple[float, float]:
    at = [int(np.ceil((place + 1) / positions * n)) - 1 for place in range(positions)]
    logs = []
    for model, H in zip(models, states, strict=True):
        h = torch.from_numpy(H[at]).float()
        with torch.inference_mode():
            logs.append(
                special.log_softmax(model.lm_head(h if final else model.model.norm(h)).double().numpy(), axis=1)
            )
    kl = special.rel_entr(np.exp(logs[0]), np.exp(logs[1])).sum(1).mean()
    return kl, (logs[0].argmax(1) == logs[1].argmax(1)).mean()


def reference(pair: Pair, settings: AnalysisSettings, data: str) -> dict[tuple[str, int, str], float]:
    """All state metrics by (model, layer, metric)."""
    prompts = prepare_prompts(pair, data, settings, views=True)
    models = {variant.name: variant.model for variant in pair}
    L = pair.blocks
    layers = [*range(-1, L - 1), L]
    tokens: dict[Any, list[float]] = defaultdict(list)
    pooled: dict[Any, dict[int, Array]] = defaultdict(dict)
    for kind, batches in (
        ("", [*prompts.deep, *prompts.pooled]),
        *((f"view{v}", b) for v, b in enumerate(prompts.views)),
    ):
        for batch in batches:
            states = {name: hidden(model, batch) for name, model in models.items()}
            lengths = batch.attention_mask.sum(1).tolist()
            for place, layer in enumerate(layers):
                for row, n in enumerate(lengths):
                    each = {name: by[place][row, :n] for name, by in states.items()}
                    for name, H in each.items():
                        pooled[kind, name, layer][int(batch.index[row])] = H.mean(0)
                        if not kind:
                            for metric, value in of_tokens(H).items():
                                tokens[name, layer, metric].append(value)
                    if not kind:
                        kl, same = lens(
                            list(models.values()), list(each.values()), n, layer == L, settings.lens_positions
                        )
                        tokens[pair.tuned[0].name, layer, "logit_kl"].append(kl)
                        tokens[pair.tuned[0].name, layer, "logit_agreement"].append(same)
    found = {key: float(np.nanmean(values)) for key, values in tokens.items()}
    stacked = {key: np.stack([rows[i] for i in sorted(rows)]) for key, rows in pooled.items()}
    tuned = pair.tuned[0].name
    for layer in layers:
        for name in models:
            values = of_prompts(stacked["", name, layer]) | of_views([stacked[f"view{v}", name, layer] for v in (0, 1)])
            found |= {(name, layer, metric): value for metric, value in values.items()}
        A, B = stacked["", "base", layer], stacked["", tuned, layer]
        below = None
        if layer < L:
            below = np.zeros_like(A) if layer == -1 else stacked["", tuned, layer - 1] - stacked["", "base", layer - 1]
        found |= {(tuned, layer, metric): value for metric, value in of_pair(A, B, below).items()}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print, for each metric, the largest relative difference to the reference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tuned", help="a model tuned from the embedded one, e.g. runs/demo/sft")
    parser.add_argument("--data", default="builtin:gsm_symbolic")
    options = parser.parse_args(arguments)
    pair = load_pair(BASE, options.tuned, dtype="float32", device="cpu")
    asked: dict[str, Any] = {
        "num_samples": PROMPTS,
        "num_token_samples": PROMPTS,
        "metrics": "all",
        "precision_floor": False,
    }
    table = analyze(pair, options.data, **asked)
    expected = reference(pair, AnalysisSettings(**asked), options.data)
    worst = _compare_states(table, expected) | _compare_weights(table, pair.tuned[0].name, Path(options.tuned))
    print(f"{'metric':<28}{'largest relative difference':>28}   where")
    for metric in METRICS:
        difference, where = worst.get(metric, (float("nan"), "not compared"))
        print(f"{metric:<28}{difference:>28.1e}   {where}")


def _compare_states(table: LayerTable, expected: dict[tuple[str, int, str], float]) -> dict[str, tuple[float, str]]:
    frame = table.frame[table.frame.module == "residual"].set_index(["model", "layer", "metric"]).value
    worst: dict[str, tuple[float, str]] = {}
    for (model, layer, metric), value in expected.items():
        _keep_worst(worst, metric, float(frame[model, layer, metric]), value, f"{model}, layer {layer}")
    return worst


def _compare_weights(table: LayerTable, tuned: str, folder: Path) -> dict[str, tuple[float, str]]:
    before, after = (
        load_file(open_checkpoint(BASE).folder / "model.safetensors"),
        load_file(folder / "model.safetensors"),
    )
    worst: dict[str, tuple[float, str]] = {}
    for block in BLOCKS:
        for module in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
            group = "mlp" if module in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            name = f"model.layers.{block}.{group}.{module}.weight"
            k = min(64, min(before[name].shape) // 2)
            values = of_weights(before[name].double().numpy(), after[name].double().numpy(), k)
            rows = table.select(layer=block, module=module, model=tuned).frame.set_index("metric").value
            for metric, value in values.items():
                _keep_worst(worst, metric, float(rows[metric]), value, f"block {block} {module}")
    return worst


def _keep_worst(worst: dict[str, tuple[float, str]], metric: str, ours: float, theirs: float, where: str) -> None:
    difference = abs(ours - theirs) / max(abs(theirs), 1e-300) if ours != theirs else 0.0
    if metric not in worst or difference > worst[metric][0]:
        worst[metric] = (difference, where)


if __name__ == "__main__":
    main()
