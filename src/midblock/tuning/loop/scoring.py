"""Score the target tokens inside the model's own forward pass: the head runs on them alone, in chunks.

Wrappers for many devices (DDP, FSDP, DeepSpeed) prepare their communication when the model's `forward` is called, so
what training needs is computed there, not on logits afterwards. The head is the dearest layer of a small model, and
logits its largest tensor: prompt and padding never reach it, and no more than `LOGIT_BYTES` of logits live at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from midblock.checkpoints import Anatomy, without_adapters
from midblock.data.batches import IGNORED
from midblock.runs.lending import evaluating
from midblock.trace import through_backbone
from midblock.tuning.prefix.prefix import FrozenPrefix

LOGIT_BYTES = 2**28


@dataclass(frozen=True)
class Reference:
    """Where p_ref comes from: the model itself with its adapters bypassed, or a second, frozen one.

    Attributes:
        anatomy: of the reference.
        adapted: the model whose adapters are bypassed while it answers; None for a second model.
        divergence: the whole distribution is wanted, not the targets' probabilities alone.
        teacher: the divergence is KL(p_ref‖p) instead of KL(p‖p_ref).
    """

    anatomy: Anatomy
    adapted: nn.Module | None
    divergence: bool
    teacher: bool = False


@contextmanager
def scoring(
    model: nn.Module, anatomy: Anatomy, prefix: FrozenPrefix, reference: Reference | None = None, top_k: int = 0
) -> Iterator[None]:
    """Teach `model.forward` to answer `model(…, labels=…, index=…, score=True)` with the fields of `Scored`.

    Without `score` it answers as always. The answer is a plain dict: wrappers look for tensors in those.

    Args:
        model: the causal language model itself, below PEFT's wrapper.
        prefix: the frozen blocks, already installed.
        reference: None where the loss needs none.
        top_k: how many of the likeliest tokens the entropy is taken over; 0 where none is wanted.
    """
    original, before = model.forward, vars(model).get("forward")

    @wraps(type(model).forward)
    def forward(self: nn.Module, *args: Any, score: bool = False, **kwargs: Any) -> Any:
        if not score:
            return original(*args, **kwargs)
        return _scored(anatomy, prefix, reference, top_k, **kwargs)

    model.forward = MethodType(forward, model)
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before


def _scored(
    anatomy: Anatomy,
    prefix: FrozenPrefix,
    reference: Reference | None,
    top_k: int,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"],
    labels: Int[Tensor, "B T"],
    index: Int[Tensor, "B"],
    **ignored: Any,
) -> dict[str, Tensor]:
    targets = labels[:, 1:]
    mask = targets != IGNORED
    with prefix.serving(index, attention_mask):
        known = None
        if reference is not None:
            bypass = nullcontext() if reference.adapted is None else without_adapters(reference.adapted)
            # without dropout: the reference is one distribution, not a new one each time it is asked
            with bypass, evaluating(reference.anatomy.backbone):
                known = through_backbone(reference.anatomy, input_ids, attention_mask=attention_mask)[:, :-1][mask]
        hidden = through_backbone(anatomy, input_ids, attention_mask=attention_mask)[:, :-1][mask]
    scores = score_targets(anatomy, hidden, targets[mask], reference, known, top_k)
    return {**scores, "row": mask.nonzero()[:, 0]}


def score_targets(
    anatomy: Anatomy,
    hidden: Float[Tensor, "N D"],
    targets: Int[Tensor, "N"],
    reference: Reference | None = None,
    known: Float[Tensor, "N D"] | None = None,
    top_k: int = 0,
    logit_bytes: int = LOGIT_BYTES,
) -> dict[str, Float[Tensor, "N"]]:
    """Log-probabilities of the targets, and where there is a reference, its own or the divergence from it.

    Args:
        hidden: final-norm outputs at the positions before the targets.
        targets: token ids.
        known: the reference's final-norm outputs at the same positions.
        top_k: as of `scoring`.
        logit_bytes: most memory for float32 logits at a time; of more tokens gradients are taken chunk by chunk on the
            way, or, where the head is trained or a divergence wanted, logits are computed again in the backward pass.

    Returns:
        `log_probs`, and `reference` (ln p_ref of the targets) or `divergence` (KL(p‖p_ref)), in nats, float32; with
        `top_k` the `entropy`, from 0 to 1.
    """
    step = max(1, logit_bytes // (4 * anatomy.config.vocab_size))
    if len(hidden) <= step:
        return _score(anatomy, reference, top_k, (targets, known), hidden)
    # a divergence has a gradient beside the targets', and so has a head that is trained
    diverging = known is not None and reference is not None and reference.divergence
    at_once = not diverging and not any(each.requires_grad for each in _behind(anatomy))
    parts = []
    for start in range(0, len(hidden), step):
        chunk = slice(start, start + step)
        beside = (targets[chunk], None if known is None else known[chunk])
        score = partial(_score, anatomy, reference, top_k, beside)
        parts.append(
            _with_slopes(score, hidden[chunk]) if at_once else checkpoint(score, hidden[chunk], use_reentrant=False)
        )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _behind(anatomy: Anatomy) -> Iterator[nn.Parameter]:
    """Parameters that states pass behind the final norm; a tied head's is the embedding's."""
    below = {id(each) for each in anatomy.backbone.parameters()}
    yield from anatomy.head.parameters()
    yield from (each for each in anatomy.model.parameters() if id(each) not in below)


def _with_slopes(
    score: Callable[[Tensor], dict[str, Tensor]], hidden: Float[Tensor, "n D"]
) -> dict[str, Float[Tensor, "n"]]:
    """What `score` makes of states, with the log-probabilities' gradient taken while the logits are there.

    A target's log-probability hangs on its own row of states alone, so the gradient of their sum holds each one's own.
    """
    if not (torch.is_grad_enabled() and hidden.requires_grad):
        return score(hidden)
    states = hidden.detach().requires_grad_()
    scores = score(states)
    (slopes,) = torch.autograd.grad(scores["log_probs"].sum(), states)
    values = {name: value.detach() for name, value in scores.items()}
    return values | {"log_probs": _Sloped.apply(hidden, values["log_probs"], slopes)}


class _Sloped(torch.autograd.Function):
    """Values of rows whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(slopes)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return (above[0].unsqueeze(-1) * slopes).to(slopes.dtype), None, None


def _score(
    anatomy: Anatomy,
    reference: Reference | None,
    top_k: int,
    beside: tuple[Int[Tensor, "n"], Float[Tensor, "n D"] | None],
    hidden: Float[Tensor, "n D"],
) -> dict[str, Float[Tensor, "n"]]:
    targets, known = beside
    logits = anatomy.logits(hidden).float()
    if top_k:
        log_probs = -functional.cross_entropy(logits, targets, reduction="none")
        return {"log_probs": log_probs, "entropy": top_entropy(logits.detach(), top_k)}
    if reference is None or known is None:
        return {"log_probs": -functional.cross_entropy(logits, targets, reduction="none")}
    with torch.no_grad():
        expected = reference.anatomy.logits(known).float()
        if reference.divergence:
            expected = expected.log_softmax(-1)
        else:
            expected = -functional.cross_entropy(expected, targets, reduction="none")
    if not reference.divergence:
        return {
            "log_probs": -functional.cross_entropy(logits, targets, reduction="none"),
            "reference": expected,
        }
    ours = logits.log_softmax(-1)
    first, second = (expected, ours) if reference.teacher else (ours, expected)
    divergence = (first.exp() * (first - second)).sum(-1)
    return {"log_probs": ours.gather(-1, targets[:, None])[:, 0], "divergence": divergence}


def top_entropy(logits: Float[Tensor, "n V"], count: int) -> Float[Tensor, "n"]:
    """Entropy of the likeliest `count` tokens, scaled to sum to one, over its largest value ln(count): 0…1."""
    likeliest = logits.topk(min(count, logits.shape[-1]), dim=-1).values.softmax(-1)
    return torch.special.entr(likeliest).sum(-1) / math.log(likeliest.shape[-1])  # 0 where a token is forbidden
