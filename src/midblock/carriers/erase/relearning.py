"""Relearning: how many steps of tuning on the behaviour bring it back, against how many teach it to the base.

What was only hidden comes back sooner than what was never there is learned. Weights are tuned in a copy, with the soft
prompt in front all the while; each test prompt's value is the first look at which it shows the behaviour.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.carriers.erase.judging import Judging
from midblock.carriers.erase.samples import Asked
from midblock.carriers.erase.settings import EraseSettings
from midblock.carriers.erase.training import batch_of
from midblock.checkpoints import device_of, fed, soft_prompt_in
from midblock.data import TokenizedPrompt, encode, make_batches
from midblock.data.batches import IGNORED
from midblock.evaluation.paired import Marks


@dataclass(frozen=True, eq=False)
class Relearned:
    """How a behaviour came back.

    Attributes:
        steps: after how many steps it was looked at.
        rates: the share of prompts that showed it then.
        first: by prompt, the steps after which it was first shown; one look beyond the last where it never was.
    """

    steps: tuple[int, ...]
    rates: tuple[float, ...]
    first: Marks


def relearned(name: str, model: Callable[[], nn.Module], taught: Asked, asked: Asked, judging: Judging) -> Relearned:
    """Tune a copy on the behaviour, and look at it every few steps.

    Args:
        name: what is kept of it is called after that.
        model: as it is before; with a soft prompt or without.
        taught: examples with the behaviour's completions.
        asked: prompts that are looked at; none of them is taught.

    Raises:
        MidblockError: the loss is not finite.
    """
    settings = judging.settings
    steps = tuple(range(0, settings.relearn_steps + 1, settings.relearn_every))
    looks: list[list[float]] = judging.kept.value(
        f"relearned-{name}", lambda: _looks(model(), taught, asked, judging, steps)
    )
    shown = np.array(looks)
    beyond = steps[-1] + settings.relearn_every
    ever = shown.any(0)
    first = np.where(ever, np.array(steps)[shown.argmax(0)], beyond).astype(float)
    return Relearned(steps, tuple(shown.mean(1).tolist()), Marks(first, np.ones_like(first), False, asked.clusters))


def _looks(
    model: nn.Module, taught: Asked, asked: Asked, judging: Judging, steps: tuple[int, ...]
) -> list[list[float]]:
    settings, copied = judging.settings, copy.deepcopy(model)
    weights = [each for name, each in copied.named_parameters() if not _of_prompt(copied, each)]
    for each in weights:
        each.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=settings.relearn_learning_rate, weight_decay=0.0)
    encoded = encode(
        taught.examples,
        judging.tokenizer,
        template=settings.template,
        max_length=settings.max_length + settings.max_new_tokens,
        add_eos=True,
    )
    advance = judging.progress.phase("tuning on the behaviour again", steps[-1])
    looks = []
    for step in range(steps[-1] + 1):
        if step in steps:
            outputs = judging.write(copied, asked)
            looks.append(judging.marks(outputs, asked).values.tolist())
        if step < steps[-1]:
            _step(copied, optimizer, encoded.prompts, step, settings)
            advance(1)
    return looks


def _of_prompt(model: nn.Module, parameter: Tensor) -> bool:
    embedding = soft_prompt_in(model)
    return embedding is not None and parameter is embedding.prompt


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    prompts: tuple[TokenizedPrompt, ...],
    step: int,
    settings: EraseSettings,
) -> None:
    """One step on the completions' tokens."""
    places = batch_of(step, len(prompts), settings.relearn_batch_size, settings.seed, -1)
    (batch,) = make_batches([prompts[place] for place in places.tolist()], batch_tokens=1 << 40)
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    input_ids, counted = fed(embedding, batch.input_ids, batch.answer_mask)
    labels = input_ids.masked_fill(~counted, IGNORED)
    device = device_of(embedding)
    loss = model(input_ids=input_ids.to(device), labels=labels.to(device), use_cache=False).loss
    if not bool(torch.isfinite(loss)):
        raise MidblockError(f"the loss is not finite at step {step + 1} of relearning", hint="--relearn-learning-rate")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
