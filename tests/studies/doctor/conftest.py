"""Pico pairs on disk, and a few questions."""

import json

import pytest


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "questions.jsonl"
    numbers = range(2, 14)
    lines = [
        {"question": f"How many apples are {n} and {n + 1}?", "answer": f"{n} + {n + 1} = {2 * n + 1}"} for n in numbers
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def saved(tmp_path, tokenizer):
    def save(model, name):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.fixture
def pair(pico, tuned_from, saved):
    base = pico("llama")
    return saved(base, "base"), saved(tuned_from(base), "sft")
