"""Training a soft prompt: only its vectors move, step by step, and the best of them on held-out prompts are kept.

The gradient's graph starts at the embedding; weights are frozen. A step's prompts follow from its number, so that a run
that was killed and goes on is the run that was not. Cost: a step is a forward and a backward pass over its tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from midblock.base import MidblockError, generator
from midblock.carriers.erase.channels import Channels
from midblock.carriers.erase.ends import Ends, Rows, padded, read_ends
from midblock.carriers.erase.found import Found, Keeping
from midblock.carriers.erase.objective import Objective, Parts, project
from midblock.checkpoints import Anatomy, SoftPrompt, prompted, soft_prompt_in
from midblock.runs.stopping import STOPPING
from midblock.trace.pieces import SAVE_SECONDS


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Options of the training of a soft prompt."""

    objective: Objective = field(default_factory=Objective)
    tokens: int = 20
    radius: float = 1.0
    learning_rate: float = 3e-3
    max_grad_norm: float = 1.0
    batch: int = 16
    steps: int = 2000
    every: int = 100
    last: int = 8
    position: str = "start"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Material:
    """Prompts, and what the base does at their ends."""

    rows: Rows
    ends: Ends


def random_prompt(embedding: Float[Tensor, "V D"], settings: TrainingSettings, start: int) -> Float[Tensor, "n D"]:
    """Vectors of a start: of the spread of the embedding's own entries, then projected."""
    draw = generator(settings.seed, "erase", "start", start)
    spread = float(embedding.float().std())
    found = torch.from_numpy(draw.standard_normal((settings.tokens, embedding.shape[1]))).float() * spread
    project(found, settings.radius)
    return found


def batch_of(step: int, count: int, batch: int, seed: int, start: int) -> Int[Tensor, "b"]:
    """Places of the prompts of a step: all come once in each round, in another order each time."""
    places = range(step * batch, (step + 1) * batch)
    orders = {each: generator(seed, "erase", "round", start, each).permutation(count) for each in
              {place // count for place in places}}  # fmt: skip
    return torch.from_numpy(np.array([orders[place // count][place % count] for place in places]))


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradient for any weight inside the `with`; given back as it was."""
    flags = [(each, each.requires_grad) for each in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for each, flag in flags:
            each.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


@dataclass(eq=False)
class Training:
    """The training of soft prompts for one model and one choice of channels.

    Attributes:
        tuned: the model whose behaviour is to go, without a soft prompt.
        base: whose states and predictions are matched.
        channels: by block.
        train, held: prompts to train on, and to choose by.
        bos: the id of the token that begins a text, for `position`.
    """

    tuned: nn.Module
    base: Anatomy
    channels: Channels
    train: Material
    held: Material
    settings: TrainingSettings
    bos: int | None = None

    def run(self, start: int, advance: Callable[[float], None], keeping: Keeping | None = None) -> Found:
        """Train from one start, or go on where it was stopped.

        Args:
            advance: hears of the steps that are behind.

        Raises:
            MidblockError: J is not finite, or another run kept what lies there.
        """
        keeping = keeping or Keeping()
        weight = self.tuned.get_input_embeddings().weight  # type: ignore[operator]
        found = keeping.found(start, Found.start(random_prompt(weight.detach().cpu(), self.settings, start)))
        advance(found.step)
        with frozen(self.tuned):
            model = self.given(found.prompt)
            parameter = trained_prompt(model)
            optimizer = self._optimizer(parameter, found)
            at = Place(found, Anatomy.of(model), parameter, optimizer, start)
            with STOPPING.stoppable():
                self._steps(at, keeping, advance)
        return found

    def parts(self, anatomy: Anatomy, prompt: Tensor, material: Material, places: Tensor) -> Parts:
        """J of some prompts, in parts."""
        ids, lengths = padded([material.rows[place] for place in places.tolist()], anatomy.embedding)
        ours = read_ends(anatomy, ids, lengths, self.channels, self.settings.last)
        return self.settings.objective.of(ours, material.ends.take(places), anatomy, self.base, prompt)

    def given(self, values: Float[Tensor, "n D"]) -> nn.Module:
        """The model with these vectors before its prompts; weights are shared."""
        return prompted(self.tuned, SoftPrompt(values.float().cpu(), "", self.settings.position, self.bos))

    def _optimizer(self, parameter: nn.Parameter, found: Found) -> torch.optim.Adam:
        optimizer = torch.optim.Adam([parameter], lr=self.settings.learning_rate)
        if found.step:
            mean, square = (each.to(parameter.device).clone() for each in found.moments)
            optimizer.state[parameter] = {
                "step": torch.tensor(float(found.step)),
                "exp_avg": mean,
                "exp_avg_sq": square,
            }
        return optimizer

    def _steps(self, at: Place, keeping: Keeping, advance: Callable[[float], None]) -> None:
        found, total, saved = at.found, self.settings.steps, time.monotonic()
        if not found.curve:
            self._judge(at)
        while found.step < total:
            found.seen.append(self._step(at))
            found.step += 1
            stop = STOPPING.due()
            if found.step % self.settings.every == 0 or found.step == total:
                self._judge(at)
            if stop or found.step == total or time.monotonic() - saved > SAVE_SECONDS:
                keeping.keep(at.start, at.caught_up())
                saved = time.monotonic()
            advance(1)
            if stop:
                STOPPING.stop()

    def _step(self, at: Place) -> float:
        settings, step = self.settings, at.found.step
        places = batch_of(step, len(self.train.rows), settings.batch, settings.seed, at.start)
        loss = self.parts(at.anatomy, at.parameter, self.train, places).total.mean()
        at.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([at.parameter], settings.max_grad_norm)
        at.optimizer.step()
        project(at.parameter, settings.radius)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise MidblockError(f"J is not finite at step {step + 1}", hint="a lower --learning-rate, --dtype float32")
        return value

    @torch.no_grad()
    def _judge(self, at: Place) -> None:
        """Look at the held-out prompts with P as it is now, and keep it if it is the best so far."""
        count, sums, found = len(self.held.rows), np.zeros(3), at.found
        for first in range(0, count, self.settings.batch):
            places = torch.arange(first, min(first + self.settings.batch, count))
            parts = self.parts(at.anatomy, at.parameter, self.held, places)
            sums += [float(each.double().sum()) for each in (parts.total, parts.states, parts.divergence)]
        total, states, divergence = (sums / count).tolist()
        mean = float(np.mean(found.seen)) if found.seen else None
        found.curve.append([found.step, mean, total, states, divergence])
        found.seen = []
        if total < found.best_loss:
            found.best, found.best_step, found.best_loss = at.parameter.detach().cpu().clone(), found.step, total


@dataclass(eq=False)
class Place:
    """Where a training stands.

    Attributes:
        anatomy: of the model with the soft prompt.
        parameter: P.
        start: number of the start.
    """

    found: Found
    anatomy: Anatomy
    parameter: nn.Parameter
    optimizer: torch.optim.Adam
    start: int

    def caught_up(self) -> Found:
        """What is found, with P and Adam's moments as they are now."""
        state: dict[str, Any] = self.optimizer.state[self.parameter]
        self.found.prompt = self.parameter.detach().cpu().clone()
        self.found.moments = state["exp_avg"].detach().cpu().clone(), state["exp_avg_sq"].detach().cpu().clone()
        return self.found


def trained_prompt(model: nn.Module) -> nn.Parameter:
    """P of a model with a soft prompt, which gradients reach."""
    embedding = soft_prompt_in(model)
    if embedding is None:
        raise MidblockError("the model has no soft prompt to train")
    embedding.prompt.requires_grad_(True)
    return embedding.prompt
