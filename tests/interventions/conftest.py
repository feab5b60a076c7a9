"""A base and a tuned model that know some answers, so that what is exchanged or cut off shows in the accuracy."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from midblock.data import ExampleSet, encode, load_dataset, make_batches


@pytest.fixture(scope="session")
def sums() -> ExampleSet:
    return load_dataset("builtin:chain_sum", num_samples=8)


@pytest.fixture(scope="session")
def teach(tokenizer: Any) -> Callable[..., nn.Module]:
    """A copy of a model after some steps on the answers of examples."""

    def teach(model: nn.Module, examples: ExampleSet, steps: int) -> nn.Module:
        taught = copy.deepcopy(model)
        (batch,) = make_batches(encode(examples, tokenizer, max_length=256, add_eos=True).prompts, batch_tokens=1 << 20)
        optimizer = torch.optim.Adam(taught.parameters(), lr=1e-2)
        for _ in range(steps):
            taught(input_ids=batch.input_ids, labels=batch.labels()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return taught

    return teach


@pytest.fixture(scope="session")
def taught(pico: Callable[..., nn.Module], teach: Callable[..., nn.Module], sums: ExampleSet) -> tuple[nn.Module, ...]:
    """A base that knows few of the answers, and a model tuned from it that knows more."""
    base = teach(pico("llama"), sums, 8)
    return base, teach(base, sums, 10)


@pytest.fixture
def saved(tmp_path: Path, tokenizer: Any) -> Callable[..., str]:
    def save(model: nn.Module, name: str) -> str:
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save
