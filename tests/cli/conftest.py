"""Pico models and prompts on disk, as a user has them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory, pico: Any, tuned_from: Any, tokenizer: Any) -> Path:
    """`start`, `sft` tuned from it, `sharded` the same in shards, and `prompts.jsonl`."""
    folder = tmp_path_factory.mktemp("models")
    base: nn.Module = pico("llama")
    tuned: Any = tuned_from(base)
    for model, name, size in ((base, "start", "1GB"), (tuned, "sft", "1GB"), (tuned, "sharded", "20KB")):
        model.save_pretrained(folder / name, max_shard_size=size)
        tokenizer.save_pretrained(folder / name)
    questions = [{"question": f"How many are {n} + {3 * n}?", "answer": f"#### {4 * n}"} for n in range(1, 13)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return folder


@pytest.fixture
def here(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with copies of the originals, to be spoiled."""
    shutil.copytree(originals, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def failure(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that must fail; give its one line on standard error."""
    from midblock.cli.main import main

    def run(*arguments: Any) -> str:
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        out, err = capfd.readouterr()
        said = [line for line in err.splitlines() if not line.endswith(" …") and ": done in" not in line]
        assert out == ""
        assert len(said) == 1, err
        assert said[0].startswith("midblock: ")
        return said[0]

    return run
