"""A base, a carrier of some of a tuned model's entries, and the same as a checkpoint of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from midblock.interventions import merge

from ..checkpoints.carving import on_disk, planted
from ..conftest import make_tuned


@dataclass(frozen=True)
class Carved:
    """Model references."""

    base: str
    carried: str
    applied: str


@pytest.fixture
def carved(tmp_path: Path, pico: Callable[..., nn.Module], tokenizer: Any) -> Callable[..., Carved]:
    def make(family: str, **options: Any) -> Carved:
        model = pico(family)
        tuned = make_tuned(model, amount=0.3)
        base = tmp_path / "base"
        model.save_pretrained(base, **options)
        tokenizer.save_pretrained(base)
        on_disk(tmp_path / "carrier", base, tuned, planted(tuned, moves=lambda name: "norm" not in name))
        carried = f"{base}+{tmp_path / 'carrier'}"
        return Carved(str(base), carried, str(merge(str(base), carried, 1, output_dir=tmp_path / "applied")))

    return make
