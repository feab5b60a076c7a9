"""Every public verb's docstring shows a call; here it is made, on a base and a tuned model of three blocks."""

import doctest
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import midblock
from midblock.runs.verbs import VERBS

SHOWN = (
    "analyze",
    "evaluate",
    "probe",
    "swap",
    "steer",
    "merge",
    "tune",
    "flow",
    "recommend",
    "export",
    "report",
    "study",
    "carve",
)  # demo takes minutes


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    pico: Callable[..., nn.Module],
    tuned_from: Callable[..., nn.Module],
    tokenizer: Any,
) -> Path:
    """`start`, `sft` tuned from it, and `sums.jsonl`."""
    folder = tmp_path_factory.mktemp("examples")
    start = pico("llama")
    for name, model in (("start", start), ("sft", tuned_from(start))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = ({"question": f"She has {n} apples. How many?", "answer": str(n % 10)} for n in range(24))
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    others = ({"question": f"She has {n} apples. How many?", "answer": str(n % 10)} for n in range(24, 30))
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
    return folder


@pytest.mark.parametrize("name", SHOWN)
def test_the_call_that_a_docstring_shows(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {each: getattr(midblock, each) for each in ("load_pair", *(VERBS[each].function or each for each in SHOWN))}
    names |= {"base": "start", "tuned": "sft", "data": "sums.jsonl"}
    verb = getattr(import_module(VERBS[name].home), VERBS[name].function or name)
    example = doctest.DocTestParser().get_doctest(verb.__doc__, names, name, None, None)
    said: list[str] = []
    found = doctest.DocTestRunner(optionflags=doctest.REPORT_ONLY_FIRST_FAILURE).run(example, out=said.append)
    assert found.attempted >= 2, "no Example: block"
    assert not found.failed, "".join(said)
