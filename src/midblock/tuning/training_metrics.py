"""TRAINING: what `tune`, `flow` and `carve` record by depth; no metrics to ask `analyze` for."""

from __future__ import annotations

from collections.abc import Mapping

from midblock.metrics import Metric

TRAINING: Mapping[str, Metric] = {
    "gradient_norm": Metric(
        "Gradient norm, mean over steps", "L2", "weights", False, "",
        "Norm of the loss's gradient by what is trained there, before clipping, averaged over the logged steps.",
        (0, None),
    ),
    "gradient_norm_first": Metric(
        "Gradient norm, first step", "L2", "weights", False, "",
        "Norm of the loss's gradient at the first logged step, where the weights are still the base model's.",
        (0, None),
    ),
    "gradient_agreement": Metric(
        "Agreement of gradients", "cosine", "weights", False, "steps",
        "Mean cosine between the gradients of different steps: 1 where every batch pulls the same way, 0 where they "
        "have nothing in common.", (-1, 1),
    ),
    "gradient_snr": Metric(
        "Signal to noise of the gradient", "ratio", "weights", False, "steps",
        "Squared norm of the mean gradient over the mean squared deviation from it; noise alone gives 0 on average.",
    ),
    "mask_density": Metric(
        "Channels carried", "share", "weights", False, "",
        "Share of a group's channels whose masks are on: 1 carries all of the change there, 0 none of it.", (0, 1),
    ),
}  # fmt: skip
