"""Every method of PEFT on every kind of base: what midblock loads is what PEFT computes unmerged, or it is refused.

Unmerged PEFT in memory, as it was trained, is the truth: its hidden states at every layer and its logits. The rows of
weight change must be the norms of what PEFT merges, less the base. docs/adapters.md is the table of this; after a
change on purpose: `MIDBLOCK_WRITE_ADAPTERS=1 pytest tests/adapters`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftType, get_peft_model
from transformers import AutoModelForCausalLM

from midblock.analysis.weight_comparison import WeightComparison
from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, load_pair, soft_prompt_in
from midblock.runs.request import check_all

from .methods import BASES, METHODS, Base
from .outcomes import BEFORE_THE_TEXT, NOT_MADE, REFUSED, table

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
IDS = torch.arange(3, 27)[None] * 11 % 300
CLOSE = 3e-5  # of the largest entry, float32
MOVED = 1e-3
CELLS = [(base, method) for base in BASES for method in METHODS]


def outputs(model: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        made = model(input_ids=IDS, output_hidden_states=True)
    return [*made.hidden_states, made.logits]


@dataclass(frozen=True)
class Start:
    """A base on disk, and what it computes."""

    folder: Path
    outputs: list[torch.Tensor]
    state: dict[str, torch.Tensor]
    parts: dict[str, str]
    tied: bool

    @classmethod
    def of(cls, model: Any, folder: Path) -> Start:
        model.save_pretrained(folder)
        tied = model.config.tie_word_embeddings
        return cls(folder, outputs(model), model.state_dict(), Anatomy.of(model).names, tied)


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory, pico: Any) -> dict[str, Start]:
    return {name: Start.of(pico(base.family), tmp_path_factory.mktemp("base")) for name, base in BASES.items()}


def distance(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


def trained(folder: Path, base: Base, method: str) -> Any:
    """The base with an adapter of which every number that may move has moved."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model.config.use_cache = False  # X-LoRA asks for it
    torch.manual_seed(3)
    adapted: Any = get_peft_model(model, METHODS[method](base))
    stream = torch.Generator().manual_seed(7)
    for value in adapted.parameters():
        if value.requires_grad and value.is_floating_point():
            value.data.add_(0.1 * torch.randn(value.shape, generator=stream))
    return adapted.eval()


def moved(start: dict[str, torch.Tensor], end: dict[str, torch.Tensor], prefix: str) -> float:
    names = [name for name in start if name.startswith(prefix)]
    return sum(float((end[name].double() - start[name].double()).square().sum()) for name in names) ** 0.5


def rows(pair: Any) -> dict[tuple[int, str], float]:
    """delta_fro by layer and module, as `analyze` has it."""
    layers = frozenset(range(-1, pair.blocks + 1))
    comparison = WeightComparison(pair.base, pair.tuned[0], pair.blocks, frozenset({"delta_fro"}), layers, 1)
    return {(row.layer, row.module): row.value for row in comparison.rows()}


def check_before_the_text(pair: Any, adapted: Any, start: Start) -> None:
    """Ids with the soft prompt's among them give PEFT's logits, and verbs that look at weights refuse the model."""
    model = pair.tuned[0].model
    ids = torch.tensor([soft_prompt_in(model).insert(tuple(IDS[0].tolist()))])
    with torch.no_grad():
        found, expected = model(input_ids=ids).logits, adapted(input_ids=IDS).logits
    assert distance([found], [expected]) < CLOSE
    assert distance([found[:, -IDS.shape[1] :]], [start.outputs[-1]]) > MOVED
    with pytest.raises(MidblockError, match="has a soft prompt, which analyze does not take"):
        check_all("analyze", pair)


@pytest.mark.parametrize(("on", "method"), [(o, m) for o, m in CELLS if m in NOT_MADE[o] and "experts" not in m])
def test_what_peft_does_not_make(starts, on, method):
    start = starts[on]
    with pytest.raises((ValueError, TypeError, NotImplementedError, AttributeError, RuntimeError, AssertionError)):
        assert distance(outputs(trained(start.folder, BASES[on], method)), start.outputs) > MOVED


@pytest.mark.parametrize(("on", "method"), [(o, m) for o, m in CELLS if m not in NOT_MADE[o]])
def test_cell(starts, tmp_path, on, method):
    start = starts[on]
    adapted = trained(start.folder, BASES[on], method)
    adapted.save_pretrained(tmp_path / "adapter")
    line = REFUSED.get(method, {}).get(on)
    if line is not None:
        for work in (lambda pair: pair.tuned[0].model, rows):
            with pytest.raises(MidblockError, match=re.escape(line)) as caught:
                work(load_pair(str(start.folder), str(tmp_path / "adapter"), device="cpu"))
            assert "\n" not in str(caught.value)
        return
    pair: Any = load_pair(str(start.folder), str(tmp_path / "adapter"), device="cpu")
    if method in BEFORE_THE_TEXT:
        check_before_the_text(pair, adapted, start)
        return
    expected = outputs(adapted)
    assert distance(expected, start.outputs) > MOVED
    assert distance(outputs(pair.tuned[0].model), expected) < CLOSE
    merged, end = adapted.merge_and_unload().state_dict(), pair.tuned[0].model.state_dict()
    found = rows(pair)
    for block in range(pair.blocks):
        change = moved(start.state, merged, f"{start.parts['blocks']}.{block}.")
        assert found[block, "block"] == pytest.approx(change, rel=1e-4, abs=1e-5)
    # of tied weights PEFT's own merge moves both, so midblock's model, just found right, is asked
    for layer, part in ((-1, "embedding"), (pair.blocks, "head")):
        if part == "head" and start.tied and pair.tuned[0].tensors().tied:
            assert (layer, part) not in found  # it is the embedding, which has a row
            continue
        change = moved(start.state, end, f"{start.parts[part]}.")
        assert found.get((layer, part), 0.0) == pytest.approx(change, rel=1e-4, abs=1e-5)


def test_every_type_of_pefts_is_here():
    made = {make(BASES["mixtral"]).peft_type for make in METHODS.values()}
    assert made == set(PeftType)


def test_the_page_is_the_table():
    page = table(peft.__version__, CLOSE)
    if os.environ.get("MIDBLOCK_WRITE_ADAPTERS") == "1":
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page
