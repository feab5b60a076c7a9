"""Tasks that let nobody write: what was learned is found by them too, and goes into Inspect logs where asked."""

import json

import pytest

from midblock.base import Silent
from midblock.checkpoints import Pair
from midblock.evaluation import evaluate
from midblock.evaluation.tasks import open_task

ROWS = [{"question": f"{n} more?", "choices": ["x", "y"], "answer": 1} for n in range(8)]


def test_a_planted_difference_is_found(pico, tokenizer, rows_file, fit, tmp_path):
    data = rows_file(*ROWS)
    base, taught = pico("llama"), pico("llama").train()
    fit(taught, tokenizer, open_task(f"mmlu:{data}").examples, steps=5)
    models = Pair.of_models(base, {"taught": taught.eval()}, tokenizer)
    tasks = [f"mmlu:{data}", f"perplexity:{data}", f"bits_per_byte:{data}"]
    run = evaluate(models, tasks, inspect=True, output_dir=tmp_path / "run", progress=Silent())
    assert run.comparisons.verdict.tolist() == ["better"] * 3
    assert run.comparisons.metric.tolist() == ["acc", "nll", "bits_per_byte"]
    assert run.comparisons.difference[0] > 0 > run.comparisons.difference[1]
    assert run.scores.no_answer.isna().all()
    logs = [json.loads(path.read_text()) for path in (tmp_path / "run" / "inspect").iterdir()]
    values = {(log["eval"]["model"], log["eval"]["task"]): log["results"]["scores"][0] for log in logs}
    for row in run.scores.itertuples():
        assert values[row.model, row.task]["metrics"][row.metric]["value"] == pytest.approx(row.value)
    assert len(values) == 6
