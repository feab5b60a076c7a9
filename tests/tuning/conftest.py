"""A pico model and sums to learn, on disk as a user has them."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from midblock.base import Silent
from midblock.tuning import Artifact, tune


class Interrupted(Silent):
    """Presses Ctrl-C when a phase begins, or in its n-th step."""

    def __init__(self, name, at=0):
        self.name, self.at = name, at

    def phase(self, name, total):
        done = 0

        def advance(amount):
            nonlocal done
            done += amount
            if name == self.name and done >= self.at:
                raise KeyboardInterrupt

        if name == self.name and not self.at:
            raise KeyboardInterrupt
        return advance


def write_model(family: str, folder: Path, pico: Any, tokenizer: Any) -> Path:
    pico(family).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_sums(path: Path, count: int = 32) -> Path:
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        a, b = draw.randint(1, 50), draw.randint(1, 50)
        rows.append({"prompt": f"{a} + {b} =", "completion": f" {a + b}" + " apples" * draw.randint(0, 3)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="package")
def llama(tmp_path_factory: pytest.TempPathFactory, pico: Any, tokenizer: Any) -> Path:
    """Folder of a pico Llama of three blocks."""
    return write_model("llama", tmp_path_factory.mktemp("models") / "start", pico, tokenizer)


@pytest.fixture(scope="package")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-two additions with completions of unequal lengths."""
    return write_sums(tmp_path_factory.mktemp("data") / "sums.jsonl")


@pytest.fixture
def tuned(llama: Path, sums: Path, tmp_path: Path) -> Callable[..., Artifact]:
    """Tune the pico Llama on the CPU for ten steps; any option may be given."""

    def run(**options: Any) -> Artifact:
        name, base = options.pop("name", "run"), options.pop("base", llama)
        given = {"max_steps": 10, "learning_rate": 3e-3, "device": "cpu", "output_dir": tmp_path / name, **options}
        return tune(str(base), str(sums), given.pop("layers", "010"), **given)

    return run


@pytest.fixture(scope="session")
def interrupted() -> type[Interrupted]:
    """A progress that presses Ctrl-C."""
    return Interrupted
