"""A step of the eraser against one forward and backward pass over the same tokens, alternating in one process.

Both run the embedded model frozen, with soft tokens in front, and their gradient ends at the embedding. The plain pass
runs the backbone and, at the last K positions, the head, to a likelihood; the bare one the backbone alone. A step of
ours has both models' heads, the states' distance, the clip, Adam and the projection. Base's ends are read before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.partner import BASE
from midblock.carriers.erase.channels import all_channels
from midblock.carriers.erase.ends import ends_of, padded
from midblock.carriers.erase.found import Found
from midblock.carriers.erase.training import Material, Place, Training, TrainingSettings, random_prompt, trained_prompt
from midblock.checkpoints import Anatomy, LoadSettings, load_model, open_checkpoint

SHORTEST, LONGEST = 32, 64


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Print the seconds of each arm, and their ratios round by round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--soft-tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    model = load_model(open_checkpoint(BASE), LoadSettings(device="cpu", dtype="float32"))
    training = prepared(model, options.batch, options.soft_tokens)
    at = place_of(training)
    arms: dict[str, Callable[[], object]] = {
        "step": lambda: training._step(at),
        "plain": lambda: plain(training, at, head=True),
        "bare": lambda: plain(training, at, head=False),
    }
    rounds: list[dict[str, tuple[float, float]]] = []
    for number in range(options.rounds + 1):  # the first warms up
        order = list(arms) if number % 2 else list(reversed(arms))
        took = {name: timed(arms[name]) for name in order}
        rounds += [took] if number else []
    found: dict[str, float] = {}
    for clock, kind in enumerate(("wall", "processor")):
        medians = {name: statistics.median(each[name][clock] for each in rounds) for name in arms}
        found |= {f"{name}_{kind}_s": round(seconds, 3) for name, seconds in medians.items()}
        for name in ("plain", "bare"):
            ratio = statistics.median(each["step"][clock] / each[name][clock] for each in rounds)
            found[f"step_over_{name}_{kind}"] = round(ratio, 3)
    print(json.dumps({"batch": options.batch, "tokens": int(tokens_of(training)), **found}, indent=2))
    return found


def prepared(model: torch.nn.Module, batch: int, soft_tokens: int, words: int = 40_000) -> Training:
    """A training on one batch of prompts of 32 to 64 tokens; the model is its own base, which costs the same."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.linspace(SHORTEST, LONGEST, batch).long().tolist()
    rows = [tuple(torch.randint(3, words, (length,), generator=draw).tolist()) for length in lengths]
    settings = TrainingSettings(tokens=soft_tokens, batch=batch)
    anatomy = Anatomy.of(model)
    channels = all_channels(len(anatomy), anatomy.width)
    material = Material(rows, ends_of(anatomy, rows, channels, settings.last, batch, lambda _: None))
    return Training(model, anatomy, channels, material, material, settings)


def place_of(training: Training) -> Place:
    """A training at its first step."""
    weight = training.tuned.get_input_embeddings().weight  # type: ignore[operator]
    found = Found.start(random_prompt(weight.detach(), training.settings, 0))
    model = training.given(found.prompt)
    parameter = trained_prompt(model)
    return Place(found, Anatomy.of(model), parameter, torch.optim.Adam([parameter], lr=3e-3), 0)


def plain(training: Training, at: Place, *, head: bool) -> None:
    """One forward and backward pass over the same tokens."""
    ids, lengths = padded(training.train.rows, at.anatomy.embedding)
    states = at.anatomy.backbone(input_ids=ids, use_cache=False)[0]
    last = lengths[:, None] - 1 - torch.arange(training.settings.last)
    ends = states[torch.arange(len(ids))[:, None], last]
    loss = -torch.log_softmax(at.anatomy.logits(ends), -1)[..., 0].mean() if head else ends.square().mean()
    at.optimizer.zero_grad()
    loss.backward()


def tokens_of(training: Training) -> int:
    """Tokens of a batch, the soft ones included and padding left out."""
    return sum(len(row) + training.settings.tokens for row in training.train.rows)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall, and of processor time: what others do on the machine shows in the first alone."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    main()
