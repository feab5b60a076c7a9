"""Models of which only one third of the blocks can matter, and sums to learn."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from midblock import recommend
from midblock.data import encode, load_dataset, make_batches
from midblock.studies.recommend.recommendation import Recommendation

BLOCKS = 12
PLANTED = range(4, 8)


def plant(model: nn.Module, blocks: range = PLANTED) -> nn.Module:
    """A copy in which all other blocks are given next to nothing by their norms: they can neither act nor learn."""
    planted = copy.deepcopy(model)
    with torch.no_grad():
        for place, block in enumerate(planted.model.layers):
            if place not in blocks:
                block.input_layernorm.weight *= 1e-3
                block.post_attention_layernorm.weight *= 1e-3
    return planted


@pytest.fixture(scope="session")
def deep(pico: Callable[..., nn.Module]) -> nn.Module:
    """A pico model of twelve blocks that add little each."""
    model = pico("llama", num_hidden_layers=BLOCKS)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight *= 0.3
    return model


def rows(count: int, ask: str = "She has {n} apples, then {m} more. How many?") -> list[dict[str, str]]:
    return [{"question": ask.format(n=n, m=n % 3), "answer": "jxk"[n % 3]} for n in range(1, count + 1)]


def write_rows(file: Path, rows: list[dict[str, str]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, deep: nn.Module, tokenizer: Any) -> Path:
    """`planted`, a base, and `sums.jsonl`."""
    folder = tmp_path_factory.mktemp("recommend")
    plant(deep).save_pretrained(folder / "planted")
    tokenizer.save_pretrained(folder / "planted")
    write_rows(folder / "sums.jsonl", rows(120))
    return folder


FAST = {"steps": 8, "num_samples": 16, "max_length": 48, "learning_rate": 0.01, "device": "cpu"}


@pytest.fixture(scope="session")
def piloted(folder: Path) -> tuple[Recommendation, list[str]]:
    """What a pilot recommends, and what was told before."""
    told: list[str] = []
    found = recommend(folder / "planted", data=str(folder / "sums.jsonl"), announce=told.append,
                      output_dir=folder / "pilot", rank_budget=64, **FAST)  # fmt: skip
    return found, told


GENERAL, SUMS = "? {n} {m}", "{n} + {m} ="


def teach(model: nn.Module, tokenizer: Any, files: list[Path], steps: int, blocks: range | None = None) -> nn.Module:
    """A copy after some steps on the answers of files, of which only some blocks moved."""
    taught = copy.deepcopy(model)
    prompts = [each for file in files for each in encode(load_dataset(file), tokenizer, max_length=64).prompts]
    (batch,) = make_batches(prompts, batch_tokens=1 << 20)
    moving = list((taught if blocks is None else taught.model.layers[blocks.start : blocks.stop]).parameters())
    optimizer = torch.optim.Adam(moving, lr=5e-3)
    for _ in range(steps):
        taught(input_ids=batch.input_ids, labels=batch.labels()).loss.backward()
        optimizer.step()
        taught.zero_grad()
    return taught


@pytest.fixture(scope="session")
def forgetful(tmp_path_factory: pytest.TempPathFactory, deep: nn.Module, tokenizer: Any) -> Path:
    """`base` knows the general answers; `tuned` learnt sums in the planted blocks, and all others lost their way."""
    folder = tmp_path_factory.mktemp("forgetful")
    general, sums = rows(64, GENERAL), rows(64, SUMS)
    for row in general:
        row["answer"] = {"j": "q", "x": "v", "k": "w"}[row["answer"]]
    known, task = write_rows(folder / "general.jsonl", general), write_rows(folder / "sums.jsonl", sums)
    base = teach(deep, tokenizer, [known], 20)
    tuned = teach(base, tokenizer, [known, task], 8, PLANTED)  # both, so that the planted third forgets nothing
    torch.manual_seed(0)
    with torch.no_grad():
        for place, block in enumerate(tuned.model.layers):
            for weight in block.parameters() if place not in PLANTED else ():
                if weight.ndim > 1:
                    weight.add_(weight.std() * torch.randn_like(weight))
    for model, name in ((base, "base"), (tuned, "tuned")):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder
