"""What a run will need, estimated before it starts: memory by purpose, in bytes on each device."""

from __future__ import annotations

from midblock.checkpoints import value_of
from midblock.tuning.loop.scoring import LOGIT_BYTES
from midblock.tuning.place.prepared import Prepared
from midblock.tuning.settings import Schedule

# AdamW keeps two numbers a trained parameter, in its dtype.
STATES = 2
# Residual-wide values that a block with a graph keeps for the backward pass: inputs of its norms and projections, q, k,
# v, attention's output and the two residual sums; fitted to nothing, so take it as a guide.
KEPT_WIDTHS = 12
# The MLP's inner values: gate, up, their product and the activation.
KEPT_INNER = 4


def estimate_memory(
    prepared: Prepared,
    settings: Schedule,
    longest: int,
    *,
    shards: int = 1,
    anchor_bytes: int = 0,
    cache_bytes: int = 0,
) -> dict[str, int]:
    """Estimate what each part of training takes.

    Args:
        longest: tokens of the longest example.
        shards: processes that weights, gradients and optimiser state are split over.
        anchor_bytes: of the singular factors.
        cache_bytes: on disk, for the frozen prefix.

    Returns:
        `weights`, `gradients`, `optimizer`, `activations`, `logits`, `anchor`, and `prefix_cache_disk`, in bytes.
    """
    weights = sum(value.numel() * value.element_size() for value in prepared.model.parameters())
    trained = sum(value.numel() * value.element_size() for value in prepared.trained.values())
    config = prepared.anatomy.config
    given, width = value_of(config, "intermediate_size"), prepared.anatomy.width
    down = [each.shape[-1] for each in prepared.anatomy.projections.values() if each.role == "down_proj"]
    inner = given if isinstance(given, int) else max(down, default=4 * width)  # some give one for each block
    stacked = [each.shape[-1] for each in prepared.anatomy.projections.values() if each.stacked]
    chosen = value_of(config, "num_experts_per_tok")
    if stacked and down and isinstance(chosen, int):
        inner = max(inner, chosen * min(down))  # a token goes through several experts
    item = 2 if next(iter(prepared.trained.values())).element_size() == 2 else 4
    tokens = settings.per_device_train_batch_size * longest
    graphs = len(prepared.anatomy) - prepared.first
    block = tokens * item * (KEPT_WIDTHS * prepared.anatomy.width + KEPT_INNER * inner)
    kept = (
        tokens * item * prepared.anatomy.width * graphs + block if settings.gradient_checkpointing else block * graphs
    )
    logits = min(LOGIT_BYTES, tokens * config.vocab_size * 4) * 3
    return {
        "weights": weights // shards + prepared.trainable.bytes_beside,
        "gradients": trained // shards,
        "optimizer": STATES * trained // shards,
        "activations": kept,
        "logits": logits,
        "anchor": anchor_bytes,
        "prefix_cache_disk": cache_bytes,
    }
