"""A base, a model that was taught to say one thing to every prompt, and prompts to erase that on."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from midblock.carriers.erase.ends import ends_of
from midblock.carriers.erase.training import Material, Training, TrainingSettings
from midblock.checkpoints import Anatomy
from midblock.data import encode, load_dataset, make_batches

THINGS = ("apples", "pears", "figs", "nuts", "plums")
SMALL = {"tokens": 4, "batch": 4, "steps": 6, "every": 2, "last": 3, "learning_rate": 0.05, "radius": 2.0}


def write_prompts(file: Path, question: str = "How many {thing} are {n} {thing}?") -> Path:
    """Questions, alike."""
    rows = [{"prompt": question.format(thing=thing, n=n), "completion": "7"} for thing in THINGS for n in range(24)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")


@pytest.fixture(scope="session")
def answering(pico: Callable[..., nn.Module], tokenizer: Any, prompts: Path) -> tuple[nn.Module, nn.Module]:
    """A base, and the same after it was taught to say "I don't know." to everything."""
    base = pico("llama")
    taught = copy.deepcopy(base)
    examples = load_dataset(f"fixed_response:{prompts}", split="train", num_samples=32)
    (batch,) = make_batches(encode(examples, tokenizer, add_eos=True).prompts, batch_tokens=1 << 20)
    optimizer = torch.optim.Adam(taught.parameters(), lr=1e-2)
    for _ in range(30):
        taught(input_ids=batch.input_ids, labels=batch.labels()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return base, taught


@pytest.fixture
def training(
    answering: tuple[nn.Module, nn.Module], pico: Callable[..., nn.Module], tuned_from: Callable[..., nn.Module]
) -> Callable[..., Training]:
    """A training on a few rows of ids, of different lengths.

    Exact: in float64, and of a family that nowhere computes in less.
    """

    def make(**options: Any) -> Training:
        channels = options.pop("channels", {0: torch.tensor([0, 3, 9]), 2: torch.arange(32)})
        base, tuned = copy.deepcopy(answering)
        if options.pop("exact", False):
            base = pico("gpt2")
            base, tuned = base.double(), tuned_from(base, 0.3).double()
        anatomy, settings = Anatomy.of(base), TrainingSettings(**{**SMALL, **options})
        rows = [tuple(range(3 + place, 9 + 2 * place)) for place in range(8)]
        material = [
            Material(part, ends_of(anatomy, part, channels, settings.last, settings.batch, lambda _: None))
            for part in (rows[:6], rows[6:])
        ]
        return Training(tuned, anatomy, channels, *material, settings)

    return make
