"""METRICS: the one table of everything midblock can measure: how it is computed and how it is read.

A new metric is a function of one of the statistics that `Metric` names, and a row here. Described, with definitions,
intervals and where published code differs, in docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from midblock.base import MidblockError, unknown
from midblock.metrics import geometry, own_change, predictions, routing, similarity, tokens, views, weights
from midblock.metrics.metric import Metric

P1 = frozenset({"p1", "standard"})
EXTRA: frozenset[str] = frozenset()

METRICS: dict[str, Metric] = {
    "prompt_entropy": Metric(
        "Prompt entropy", "0–1", "tokens", False, "bootstrap",
        "How many directions one prompt's tokens spread over, relative to the most they could.", (0, 1), P1,
        compute=tokens.prompt_entropy,
    ),
    "prompt_entropy_renyi2": Metric(
        "Prompt entropy, Rényi 2", "0–1", "tokens", False, "bootstrap",
        "How many directions one prompt's tokens spread over, with more weight on the strongest.", (0, 1),
        compute=tokens.prompt_entropy_renyi2,
    ),
    "curvature": Metric(
        "Curvature", "0–1", "tokens", False, "bootstrap",
        "Mean turn between one token-to-token step and the next, in half turns.", (0, 1), P1,
        compute=tokens.curvature,
    ),
    "sparsity": Metric(
        "Sparsity", "0–1", "tokens", False, "bootstrap",
        "Share of activations below 1 % of the prompt's largest.", (0, 1), P1,
        compute=tokens.sparsity,
    ),
    "sink_share": Metric(
        "Sink share", "0–1", "tokens", False, "bootstrap",
        "Share of a prompt's squared norm that its largest token holds.", (0, 1),
        compute=tokens.sink_share,
    ),
    "dataset_entropy": Metric(
        "Dataset entropy", "0–1", "pooled", False, "jackknife",
        "How many directions the prompts' mean states spread over, relative to the most they could.", (0, 1), P1,
        compute=geometry.dataset_entropy, depends_on_n=True,
    ),
    "effective_rank": Metric(
        "Effective rank", "directions", "pooled", False, "jackknife",
        "Exponential of the spectrum's entropy: how many directions the prompts' means really use.", (1, None), P1,
        compute=geometry.effective_rank, depends_on_n=True,
    ),
    "effective_rank_normalized": Metric(
        "Effective rank, share", "0–1", "pooled", False, "jackknife",
        "Effective rank over the largest rank possible.", (0, 1), P1,
        compute=geometry.effective_rank_normalized, depends_on_n=True,
    ),
    "l2_norm": Metric(
        "Norm", "activation", "pooled", False, "bootstrap", "Mean length of a prompt's mean state.", (0, None), P1,
        compute=geometry.l2_norm,
    ),
    "spectral_norm": Metric(
        "Spectral norm", "activation", "pooled", False, "jackknife",
        "Largest singular value of the prompts' mean states.", (0, None), P1,
        compute=geometry.spectral_norm, depends_on_n=True,
    ),
    "condition_number": Metric(
        "Condition number", "ratio", "pooled", False, "",
        "Largest over smallest non-zero singular value.", (1, None), P1,
        compute=geometry.condition_number, depends_on_n=True,
    ),
    "rank_deficiency": Metric(
        "Rank deficiency", "0–1", "pooled", False, "",
        "Share of singular values at or below 1 % of the largest.", (0, 1), P1,
        compute=geometry.rank_deficiency, depends_on_n=True,
    ),
    "effective_rank_centered": Metric(
        "Effective rank, centred", "directions", "pooled", False, "jackknife",
        "Effective rank after the mean over prompts is taken out, so that one shared direction cannot hide the rest.",
        (1, None),
        compute=geometry.effective_rank_centered, depends_on_n=True,
    ),
    "gini": Metric(
        "Gini of norms", "0–1", "pooled", False, "jackknife",
        "How unequal the prompts' norms are.", (0, 1), P1,
        compute=geometry.gini,
    ),
    "intrinsic_dimension": Metric(
        "Intrinsic dimension", "dimensions", "pooled", False, "jackknife",
        "TwoNN estimate from each prompt's two nearest neighbours.", (0, None), P1,
        compute=geometry.intrinsic_dimension, depends_on_n=True,
    ),
    "lidar": Metric(
        "LiDAR", "nats", "views", False, "jackknife",
        "Entropy of what tells prompts apart, whitened by how one prompt's views differ.", (0, None), EXTRA,
        compute=views.lidar, depends_on_n=True,
    ),
    "dime": Metric(
        "DiME", "nats", "views", False, "jackknife",
        "Difference in matrix entropy between two augmented views of the prompts.", (0, None), EXTRA,
        compute=views.dime, depends_on_n=True,
    ),
    "infonce": Metric(
        "InfoNCE", "nats", "views", False, "bootstrap",
        "Contrastive loss of finding a prompt's other view among all prompts.", (0, None), EXTRA,
        compute=views.infonce, depends_on_n=True,
    ),
    "mean_shift": Metric(
        "Mean shift", "activation", "pooled", True, "jackknife",
        "Distance between the two models' mean states over all prompts.", (0, None), P1,
        compute=similarity.mean_shift, same=0, depends_on_n=True, debiased="mean_shift_debiased",
    ),
    "mean_shift_relative": Metric(
        "Mean shift, relative", "of base norm", "pooled", True, "jackknife",
        "Distance between the two models' mean states over all prompts, over the base's mean norm.", (0, None),
        compute=similarity.mean_shift_relative, same=0, depends_on_n=True, debiased="mean_shift_debiased",
    ),
    "mean_shift_debiased": Metric(
        "Mean shift, debiased", "activation", "pooled", True, "jackknife",
        "Distance between the two models' mean states, less what the spread of the prompts adds to it.", (0, None),
        compute=similarity.mean_shift_debiased, same=0,
    ),
    "change_intensity_relative": Metric(
        "Change, relative", "of base norm", "pooled", True, "jackknife",
        "Mean distance between a prompt's states in the two models, over the base's mean norm.", (0, None),
        compute=similarity.change_intensity_relative, same=0,
    ),
    "change_own": Metric(
        "Change of its own", "of base norm", "own", True, "jackknife",
        "What the block's own tuning does: the tuned block against the base's, both given the base's states.",
        (0, None),
        compute=own_change.change_own, same=0, floor_of="change_increment",
    ),
    "change_reaction": Metric(
        "Reaction", "of base norm", "own", True, "jackknife",
        "What the tuned block makes of the change that reached it from below.", (0, None),
        compute=own_change.change_reaction, same=0, floor_of="change_increment",
    ),
    "own_share": Metric(
        "Own share", "share", "own", True, "jackknife",
        "Share of what is added across the block that points along its own part: 1 acts, 0 only reacts.",
        compute=own_change.own_share, floor_of="change_increment",
    ),
    "change_own_reverse": Metric(
        "Change of its own, on tuned states", "of base norm", "own", True, "jackknife",
        "The tuned block against the base's, both given the tuned model's states.", (0, None), EXTRA,
        compute=own_change.change_own_reverse, same=0, floor_of="change_increment",
    ),
    "change_increment": Metric(
        "Change added here", "of base norm", "pooled", True, "jackknife",
        "How much the change grows or turns across this block: by its own weights, or by reacting to changed input.",
        (0, None),
        compute=similarity.change_increment, same=0,
    ),
    "cka": Metric(
        "CKA, biased", "0–1", "pooled", True, "jackknife",
        "Similarity of the two models' geometries; near 1 even for unrelated data when prompts are few.", (0, 1), P1,
        compute=similarity.cka, null=similarity.cka_null, same=1, depends_on_n=True, debiased="cka_debiased",
    ),
    "cka_debiased": Metric(
        "CKA, debiased", "≤ 1", "pooled", True, "jackknife",
        "Similarity of the two models' geometries, 1 when equal and near 0 when unrelated.", (None, 1), P1,
        compute=similarity.cka_debiased, null=similarity.cka_debiased_null, same=1, least=0,
    ),
    "cosine_similarity": Metric(
        "Cosine similarity", "−1–1", "pooled", True, "bootstrap",
        "Mean cosine between a prompt's mean states in the two models.", (-1, 1), P1,
        compute=similarity.cosine_similarity, null=similarity.cosine_similarity_null, same=1,
    ),
    "cosine_centered": Metric(
        "Cosine, centred", "−1–1", "pooled", True, "jackknife",
        "Mean cosine between a prompt's mean states in the two models, once each model's mean is taken out.", (-1, 1),
        compute=similarity.cosine_centered, null=similarity.cosine_centered_null, same=1,
    ),
    "procrustes": Metric(
        "Procrustes distance", "0–2", "pooled", True, "jackknife",
        "What remains between the two geometries after the best rotation.", (0, 2),
        compute=similarity.procrustes, null=similarity.procrustes_null, same=0, depends_on_n=True,
    ),
    "change_intensity": Metric(
        "Change", "activation", "pooled", True, "bootstrap",
        "Mean distance between a prompt's mean states in the two models.", (0, None), P1,
        compute=similarity.change_intensity, same=0,
    ),
    "logit_kl": Metric(
        "Logit-lens KL(base‖tuned)", "nats", "lens", True, "bootstrap",
        "How far apart the next-token distributions read off at this depth are.", (0, None),
        compute=predictions.logit_kl, same=0,
    ),
    "logit_agreement": Metric(
        "Logit-lens agreement", "0–1", "lens", True, "share",
        "How often both models' likeliest next token, read off at this depth, is the same.", (0, 1),
        compute=predictions.logit_agreement, same=1,
    ),
    "kl_answers": Metric(
        "KL(base‖tuned) on the answers", "nats", "heads", True, "bootstrap",
        "How far tuning moved the predictions of the answers' tokens; others found it to go with what is forgotten.",
        (0, None),
        same=0, floor_of="logit_kl",
    ),
    "kl_answers_reverse": Metric(
        "KL(tuned‖base) on the answers", "nats", "heads", True, "bootstrap",
        "The same from the tuned model's side: large where it now says what the base would not.", (0, None),
        same=0, floor_of="logit_kl",
    ),
    "kl_general": Metric(
        "KL(base‖tuned) on general text", "nats", "heads", True, "bootstrap",
        "How far tuning moved the predictions of text that it was not about.", (0, None),
        same=0,
    ),
    "kl_general_reverse": Metric(
        "KL(tuned‖base) on general text", "nats", "heads", True, "bootstrap",
        "The same from the tuned model's side.", (0, None),
        same=0,
    ),
    "router_change": Metric(
        "Experts that differ", "0–1", "routers", True, "share",
        "Share of the experts chosen for a token that the other model does not choose, each on its own states.", (0, 1),
        compute=routing.router_change, same=0,
    ),
    "router_change_own": Metric(
        "Experts that differ, of its own", "0–1", "routers", True, "share",
        "What the router's own tuning does: both routers given what reaches the base's.", (0, 1),
        compute=routing.router_change_own, same=0, floor_of="router_change",
    ),
    "router_change_reaction": Metric(
        "Experts that differ, by reaction", "0–1", "routers", True, "share",
        "What the tuned router makes of the change that reached it: its choice on both models' states.", (0, 1),
        compute=routing.router_change_reaction, same=0, floor_of="router_change",
    ),
    "router_js": Metric(
        "Change of the mix", "nats", "routers", True, "bootstrap",
        "Jensen–Shannon divergence of the weights that a token's experts are mixed with, each model on its own states.",
        (0, 0.6931471805599453),
        compute=routing.router_js, same=0,
    ),
    "router_js_own": Metric(
        "Change of the mix, of its own", "nats", "routers", True, "bootstrap",
        "The same, both routers given what reaches the base's: what the router's own tuning does.",
        (0, 0.6931471805599453),
        compute=routing.router_js_own, same=0, floor_of="router_js",
    ),
    "router_js_reaction": Metric(
        "Change of the mix, by reaction", "nats", "routers", True, "bootstrap",
        "The same of the tuned router alone, on both models' states.", (0, 0.6931471805599453), EXTRA,
        compute=routing.router_js_reaction, same=0, floor_of="router_js",
    ),
    "expert_load_shift": Metric(
        "Shift of the expert load", "0–1", "loads", True, "jackknife",
        "Share of the choices that go to other experts than in the base (total variation of the two loads).", (0, 1),
        compute=routing.expert_load_shift, same=0, depends_on_n=True,
    ),
    "expert_load_entropy": Metric(
        "Balance of the expert load", "0–1", "loads", False, "jackknife",
        "Entropy of the experts' shares of the choices: 1 where all get as much, 0 where one gets all.", (0, 1),
        compute=routing.expert_load_entropy, depends_on_n=True,
    ),
    "expert_load": Metric(
        "Expert load", "0–1", "loads", False, "jackknife",
        "Share of the choices that one expert gets; a row for each expert.", (0, 1), EXTRA,
        compute=routing.expert_load, by_expert=True,
    ),
    "expert_load_change": Metric(
        "Change of an expert's load", "share", "loads", True, "jackknife",
        "How much larger an expert's share of the choices is than in the base; a row for each expert.", (-1, 1), EXTRA,
        compute=routing.expert_load_change, same=0, by_expert=True,
    ),
    "delta_fro": Metric(
        "Weight change", "weight", "weights", True, "", "Frobenius norm of the weight change.", (0, None), P1,
        compute=weights.delta_fro, same=0,
    ),
    "delta_rel": Metric(
        "Weight change, relative", "of base norm", "weights", True, "",
        "Frobenius norm of the change over that of the base weight.", (0, None), P1,
        compute=weights.delta_rel, same=0,
    ),
    "changed_fraction": Metric(
        "Changed entries", "0–1", "weights", True, "", "Share of weights that differ at all.", (0, 1),
        compute=weights.changed_fraction, same=0,
    ),
    "delta_spectral": Metric(
        "Spectral norm of the change", "weight", "spectrum", True, "",
        "Largest singular value of the weight change.", (0, None),
        compute=weights.delta_spectral, largest=True, same=0,
    ),
    "delta_stable_rank": Metric(
        "Stable rank of the change", "directions", "spectrum", True, "",
        "Squared Frobenius over squared spectral norm of the change.", (0, None),
        compute=weights.delta_stable_rank,
    ),
    "delta_effective_rank": Metric(
        "Effective rank of the change", "directions", "spectrum", True, "",
        "Exponential of the entropy of the change's squared singular values.", (0, None),
        compute=weights.delta_effective_rank,
    ),
    "subspace_rotation_max": Metric(
        "Rotation, largest angle", "radians", "spaces", True, "",
        "Largest principal angle between base and tuned top singular spaces (the larger of left and right).",
        (0, 1.5707963267948966),
        compute=weights.subspace_rotation_max, largest=True, same=0,
    ),
    "subspace_rotation_mean": Metric(
        "Rotation, mean angle", "radians", "spaces", True, "",
        "Mean principal angle between base and tuned top singular spaces (left and right).", (0, 1.5707963267948966),
        compute=weights.subspace_rotation_mean, same=0,
    ),
    "expert_delta_rel": Metric(
        "Weight change of an expert, relative", "of base norm", "experts", True, "",
        "Frobenius norm of the change of one expert's weights over that of its base weights; a row for each expert.",
        (0, None), EXTRA,
        compute=weights.expert_delta_rel, same=0, by_expert=True,
    ),
    "expert_block_drift": Metric(
        "Drift of an expert in its top block", "0–1", "expert_spaces", True, "",
        "Share of one expert's change that falls inside its own top singular blocks; a row for each expert that moved.",
        (0, 1), EXTRA,
        compute=weights.expert_block_drift, by_expert=True,
    ),
    "block_drift": Metric(
        "Drift in the top block", "0–1", "spaces", True, "",
        "Share of the change that falls inside the base's top singular block, which RPSFT penalises.", (0, 1),
        compute=weights.block_drift,
    ),
}  # fmt: skip

SETS = ("standard", "p1", "all")
LISTED = "docs/metrics.md"
NAMING = f"`standard`, `p1`, `all`, or names of {LISTED}, comma-separated"


def choose(text: str | Iterable[str]) -> tuple[str, ...]:
    """Turn `standard`, `p1`, `all`, or a list of names and sets ("p1,logit_kl") into metric names, in table order.

    Raises:
        MidblockError: an unknown name; the nearest one is given.
    """
    parts = [part.strip() for part in (text.split(",") if isinstance(text, str) else text)]
    if "" in parts:
        raise MidblockError("metrics names an empty one" if any(parts) else "metrics is empty", hint=NAMING)
    wanted: set[str] = set()
    for part in parts:
        if part == "all":
            wanted |= set(METRICS)
        elif part in SETS:
            wanted |= {name for name, metric in METRICS.items() if part in metric.sets}
        elif part in METRICS:
            wanted.add(part)
        else:
            raise unknown("metric", part, [*METRICS, *SETS], listed=LISTED)
    return tuple(name for name in METRICS if name in wanted)


def computed_from(source: str, wanted: Iterable[str], *, paired: bool | None = None) -> tuple[str, ...]:
    """Of the wanted metrics, in table order, those that are computed from one source.

    Args:
        source: as in `Metric`.
        paired: only those that compare two models, or only those that do not.
    """
    asked = frozenset(wanted)
    return tuple(
        name
        for name, metric in METRICS.items()
        if name in asked and metric.source == source and paired in (None, metric.paired)
    )


def values(names: Iterable[str], statistic: Any) -> dict[str, Any]:
    """What each metric makes of a statistic; those that are not defined there are left out."""
    found = {}
    for name in names:
        compute = METRICS[name].compute
        value = None if compute is None else compute(statistic)
        if value is not None:
            found[name] = value
    return found


def columns(names: Sequence[str], statistic: Any) -> Float[Tensor, "B C"]:
    """The same for metrics with a value a prompt, side by side in float64 on the CPU."""
    found = values(names, statistic)
    return torch.stack([found[name] for name in names], dim=1).cpu().double()  # MPS has no float64
