"""METRICS: the one table of everything midblock can measure, with what a reader needs to read a number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from midblock.base import unknown

# Suffixes of the reference rows that stand beside a metric's own.
NULL = ".null"  # the metric between unrelated prompts (permutation); low and high bound 95 % of the permutations
SPLIT_FLOOR = ".split_floor"  # |metric on one half of the prompts - on the other half|, base model
PRECISION_FLOOR = ".precision_floor"  # base in float32 against base in bfloat16
SEED = ".seed"  # with a number from 1: the metric on another sample of prompts, drawn apart from all others
SEEDS = ".seeds"  # mean over all samples of prompts; low and high are the smallest and the largest of them


@dataclass(frozen=True)
class Metric:
    """What a metric is called, needs and means.

    Attributes:
        title: heading for people.
        unit: unit or range of the value, as text ("0–1", "nats", "relative").
        source: what it is computed from: "pooled" (prompt means), "tokens" (one prompt's states), "lens" (logit
            lens), "views" (augmented prompts), "weights".
        paired: True when it compares a tuned model with the base; False when it describes one model.
        interval: "bootstrap" over prompts, "jackknife" (delete-group, over prompts), or "" where none is defined.
        meaning: one sentence for the reader of a report.
        bounds: smallest and largest value possible, None where open.
        sets: the metric sets it belongs to: "p1" (the paper's), "standard" (the default); "all" holds every one.
    """

    title: str
    unit: str
    source: str
    paired: bool
    interval: str
    meaning: str
    bounds: tuple[float | None, float | None] = (None, None)
    sets: frozenset[str] = frozenset({"standard"})


P1 = frozenset({"p1", "standard"})
EXTRA: frozenset[str] = frozenset()

METRICS: dict[str, Metric] = {
    "prompt_entropy": Metric(
        "Prompt entropy", "0–1", "tokens", False, "bootstrap",
        "How many directions one prompt's tokens spread over, relative to the most they could.", (0, 1), P1,
    ),
    "prompt_entropy_renyi2": Metric(
        "Prompt entropy, Rényi 2", "0–1", "tokens", False, "bootstrap",
        "How many directions one prompt's tokens spread over, with more weight on the strongest.", (0, 1),
    ),
    "curvature": Metric(
        "Curvature", "0–1", "tokens", False, "bootstrap",
        "Mean turn between one token-to-token step and the next, in half turns.", (0, 1), P1,
    ),
    "sparsity": Metric(
        "Sparsity", "0–1", "tokens", False, "bootstrap",
        "Share of activations below 1 % of the prompt's largest.", (0, 1), P1,
    ),
    "dataset_entropy": Metric(
        "Dataset entropy", "0–1", "pooled", False, "jackknife",
        "How many directions the prompts' mean states spread over, relative to the most they could.", (0, 1), P1,
    ),
    "effective_rank": Metric(
        "Effective rank", "directions", "pooled", False, "jackknife",
        "Exponential of the spectrum's entropy: how many directions the prompts' means really use.", (1, None), P1,
    ),
    "effective_rank_normalized": Metric(
        "Effective rank, share", "0–1", "pooled", False, "jackknife",
        "Effective rank over the largest rank possible.", (0, 1), P1,
    ),
    "effective_rank_centered": Metric(
        "Effective rank, centred", "directions", "pooled", False, "jackknife",
        "Effective rank after the mean over prompts is taken out, so that one shared direction cannot hide the rest.",
        (1, None),
    ),
    "l2_norm": Metric(
        "Norm", "activation", "pooled", False, "bootstrap", "Mean length of a prompt's mean state.", (0, None), P1,
    ),
    "spectral_norm": Metric(
        "Spectral norm", "activation", "pooled", False, "jackknife",
        "Largest singular value of the prompts' mean states.", (0, None), P1,
    ),
    "condition_number": Metric(
        "Condition number", "ratio", "pooled", False, "jackknife",
        "Largest over smallest non-zero singular value.", (1, None), P1,
    ),
    "rank_deficiency": Metric(
        "Rank deficiency", "0–1", "pooled", False, "jackknife",
        "Share of singular values at or below 1 % of the largest.", (0, 1), P1,
    ),
    "gini": Metric(
        "Gini of norms", "0–1", "pooled", False, "jackknife",
        "How unequal the prompts' norms are.", (0, 1), P1,
    ),
    "intrinsic_dimension": Metric(
        "Intrinsic dimension", "dimensions", "pooled", False, "jackknife",
        "TwoNN estimate from each prompt's two nearest neighbours.", (0, None), P1,
    ),
    "lidar": Metric(
        "LiDAR", "nats", "views", False, "jackknife",
        "Entropy of what tells prompts apart, whitened by how one prompt's views differ.", (0, None), EXTRA,
    ),
    "dime": Metric(
        "DiME", "nats", "views", False, "jackknife",
        "Difference in matrix entropy between two augmented views of the prompts.", (0, None), EXTRA,
    ),
    "infonce": Metric(
        "InfoNCE", "nats", "views", False, "bootstrap",
        "Contrastive loss of finding a prompt's other view among all prompts.", (0, None), EXTRA,
    ),
    "cka": Metric(
        "CKA, biased", "0–1", "pooled", True, "jackknife",
        "Similarity of the two models' geometries; near 1 even for unrelated data when prompts are few.", (0, 1), P1,
    ),
    "cka_debiased": Metric(
        "CKA, debiased", "≤ 1", "pooled", True, "jackknife",
        "Similarity of the two models' geometries, 1 when equal and near 0 when unrelated.", (None, 1), P1,
    ),
    "cosine_similarity": Metric(
        "Cosine similarity", "−1–1", "pooled", True, "bootstrap",
        "Mean cosine between a prompt's mean states in the two models.", (-1, 1), P1,
    ),
    "cosine_centered": Metric(
        "Cosine, centred", "−1–1", "pooled", True, "jackknife",
        "Mean cosine between a prompt's mean states in the two models, once each model's mean is taken out.", (-1, 1),
    ),
    "change_intensity": Metric(
        "Change", "activation", "pooled", True, "bootstrap",
        "Mean distance between a prompt's mean states in the two models.", (0, None), P1,
    ),
    "change_intensity_relative": Metric(
        "Change, relative", "of base norm", "pooled", True, "jackknife",
        "Mean distance between a prompt's states in the two models, over the base's mean norm.", (0, None),
    ),
    "change_increment": Metric(
        "Change added here", "of base norm", "pooled", True, "jackknife",
        "How much the change grows or turns across this block: by its own weights, or by reacting to changed input.",
        (0, None),
    ),
    "mean_shift": Metric(
        "Mean shift", "activation", "pooled", True, "jackknife",
        "Distance between the two models' mean states over all prompts.", (0, None), P1,
    ),
    "mean_shift_relative": Metric(
        "Mean shift, relative", "of base norm", "pooled", True, "jackknife",
        "Distance between the two models' mean states over all prompts, over the base's mean norm.", (0, None),
    ),
    "procrustes": Metric(
        "Procrustes distance", "0–2", "pooled", True, "jackknife",
        "What remains between the two geometries after the best rotation.", (0, 2),
    ),
    "logit_kl": Metric(
        "Logit-lens KL(base‖tuned)", "nats", "lens", True, "bootstrap",
        "How far apart the next-token distributions read off at this depth are.", (0, None),
    ),
    "logit_agreement": Metric(
        "Logit-lens agreement", "0–1", "lens", True, "bootstrap",
        "How often both models' likeliest next token, read off at this depth, is the same.", (0, 1),
    ),
    "delta_fro": Metric(
        "Weight change", "weight", "weights", True, "", "Frobenius norm of the weight change.", (0, None), P1,
    ),
    "delta_rel": Metric(
        "Weight change, relative", "of base norm", "weights", True, "",
        "Frobenius norm of the change over that of the base weight.", (0, None), P1,
    ),
    "changed_fraction": Metric(
        "Changed entries", "0–1", "weights", True, "", "Share of weights that differ at all.", (0, 1),
    ),
    "delta_spectral": Metric(
        "Spectral norm of the change", "weight", "weights", True, "",
        "Largest singular value of the weight change.", (0, None),
    ),
    "delta_stable_rank": Metric(
        "Stable rank of the change", "directions", "weights", True, "",
        "Squared Frobenius over squared spectral norm of the change.", (0, None),
    ),
    "delta_effective_rank": Metric(
        "Effective rank of the change", "directions", "weights", True, "",
        "Exponential of the entropy of the change's squared singular values.", (0, None),
    ),
    "subspace_rotation_max": Metric(
        "Rotation, largest angle", "radians", "weights", True, "",
        "Largest principal angle between base and tuned top singular spaces (the larger of left and right).",
        (0, 1.5707963267948966),
    ),
    "subspace_rotation_mean": Metric(
        "Rotation, mean angle", "radians", "weights", True, "",
        "Mean principal angle between base and tuned top singular spaces (left and right).", (0, 1.5707963267948966),
    ),
    "block_drift": Metric(
        "Drift in the top block", "0–1", "weights", True, "",
        "Share of the change that falls inside the base's top singular block, which RPSFT penalises.", (0, 1),
    ),
}  # fmt: skip

SETS = ("standard", "p1", "all")


def choose(text: str | Iterable[str]) -> tuple[str, ...]:
    """Turn `standard`, `p1`, `all`, or a list of names and sets ("p1,logit_kl") into metric names, in table order.

    Raises:
        MidblockError: an unknown name; the nearest one is given.
    """
    parts = [part.strip() for part in (text.split(",") if isinstance(text, str) else text)]
    wanted: set[str] = set()
    for part in parts:
        if part == "all":
            wanted |= set(METRICS)
        elif part in SETS:
            wanted |= {name for name, metric in METRICS.items() if part in metric.sets}
        elif part in METRICS:
            wanted.add(part)
        else:
            raise unknown("metric", part, [*METRICS, *SETS])
    return tuple(name for name in METRICS if name in wanted)
