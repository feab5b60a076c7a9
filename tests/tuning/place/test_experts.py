"""Adapters on experts from end to end: tuned, compared by their factors, exported, and compared again."""

import pytest

from midblock.analysis.weight_comparison import WeightComparison
from midblock.checkpoints import load_pair
from midblock.tuning import tune
from midblock.tuning.export.export import export

WANTED = frozenset({"delta_fro", "delta_rel", "delta_spectral", "delta_stable_rank"})


def changes(base, tuned):
    """{(layer, module, metric): value}, and whether a model was built for it."""
    pair, notes = load_pair(str(base), str(tuned)), []
    comparison = WeightComparison(pair.base, pair.tuned[0], 3, WANTED, frozenset(range(-1, 4)), 4, notes=notes)
    found = {(row.layer, row.module, row.metric): row.value for row in comparison.rows()}
    assert notes == []
    assert pair.tuned[0].loaded is None
    return found


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe"])
def test_a_run_on_experts_changes_what_its_merged_checkpoint_changes(family, sums, pico, tokenizer, tmp_path):
    base = tmp_path / family
    for each in (pico(family), tokenizer):
        each.save_pretrained(base)
    run = tune(
        str(base), str(sums), "all", max_steps=10, learning_rate=3e-3, device="cpu", output_dir=tmp_path / "run",
        target_modules="mlp", lora_r=4,
    )  # fmt: skip
    by_factors = changes(base, run.path)
    merged = changes(base, export(run.folder, tmp_path / "out"))
    for layer in range(3):
        assert by_factors[layer, "block", "delta_rel"] > 0.01
        assert by_factors[layer, "attention", "delta_rel"] == 0
    names = {cell for cell in by_factors if cell[2] in ("delta_fro", "delta_rel", "delta_spectral")}
    # the merged weights were rounded once, to float32
    expected = {name: merged[name] for name in names}
    assert {name: by_factors[name] for name in names} == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert all(by_factors[layer, "down_proj", "delta_stable_rank"] <= 4 + 1e-9 for layer in range(3))
