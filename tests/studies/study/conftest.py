"""A pico base, sums to train on and others to be asked, as a user has them; and what trials left, written by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TRAINED, TESTED = range(1, 25), range(25, 49)


def sums(numbers: range) -> str:
    rows = ({"question": f"She has {n} apples, then {n % 3} more. How many?", "answer": "jxx"[n % 3]} for n in numbers)
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, pico: Callable[..., Any], tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("study")
    pico("llama").save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    (folder / "sums.jsonl").write_text(sums(TRAINED))
    (folder / "other.jsonl").write_text(sums(TESTED))
    return folder


@pytest.fixture
def here(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that sees the model and the data."""
    for entry in model_folder.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def plan() -> dict[str, Any]:
    """A study of two arms and one seed that takes a second a trial."""
    return {
        "base": "start",
        "data": "sums.jsonl",
        "tune": {"max_steps": 3, "learning_rate": 0.01, "max_length": 48, "device": "cpu", "save_steps": 0},
        "grid": {"layers": ["all", "010"]},
        "evaluate": {"tasks": ["exact_match:other.jsonl"], "num_samples": 12, "max_new_tokens": 3,
                     "reader": "first_line"},
    }  # fmt: skip
