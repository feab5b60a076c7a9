"""How many examples, steps and epochs a run comes to."""

from __future__ import annotations

from typing import Any

from midblock.runs.processes import world_size
from midblock.tuning.loop.examples import TrainingExamples
from midblock.tuning.settings import Loop, Schedule


def examples_a_step(settings: Schedule) -> int:
    """Examples of one optimiser step, over all processes."""
    return settings.per_device_train_batch_size * settings.gradient_accumulation_steps * world_size()


def epochs_of(settings: Schedule, loop: Loop, examples: int) -> float:
    """Passes over the examples."""
    if settings.max_steps > 0:
        return settings.max_steps * examples_a_step(settings) / examples
    return loop.num_train_epochs


def schedule_of(settings: Schedule, loop: Loop, examples: TrainingExamples) -> dict[str, Any]:
    """The schedule for `plan.json`."""
    epochs = epochs_of(settings, loop, len(examples))
    steps = settings.max_steps
    if steps <= 0:
        each = -(-len(examples) // examples_a_step(settings))
        steps = max(1, int(-(-each * epochs // 1)))
    return {
        "examples": len(examples),
        "examples_a_step": examples_a_step(settings),
        "steps": steps,
        "epochs": round(epochs, 3),
        "tokens": examples.facts["tokens"],
        "target_tokens": examples.facts["target_tokens"],
    }
