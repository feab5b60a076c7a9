"""Pico models on disk, with their tokenizer, as a user has them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn


@pytest.fixture
def saved(tmp_path: Path, tokenizer: Any) -> Callable[..., Path]:
    def save(model: nn.Module, name: str, **options: Any) -> Path:
        model.save_pretrained(tmp_path / name, **options)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save
