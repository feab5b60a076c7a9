"""Adapters on experts from end to end: tuned, compared by their factors, exported, and compared again."""

import json
import warnings

import pytest
import torch
from peft import PeftModel

from midblock.analysis.weight_comparison import WeightComparison
from midblock.checkpoints import load_pair
from midblock.tuning import tune
from midblock.tuning.export.export import export

WANTED = frozenset({"delta_fro", "delta_rel", "delta_spectral", "delta_stable_rank", "expert_delta_rel"})


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
    names = {cell for cell in by_factors if cell[2] in WANTED - {"delta_stable_rank"}}
    assert {cell[1] for cell in names if cell[2] == "expert_delta_rel"} == {f"expert:{expert}" for expert in range(4)}
    # the merged weights were rounded once, to float32
    expected = {name: merged[name] for name in names}
    assert {name: by_factors[name] for name in names} == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert all(by_factors[layer, "down_proj", "delta_stable_rank"] <= 4 + 1e-9 for layer in range(3))


@pytest.fixture
def mixture(pico, tokenizer, tmp_path):
    for each in (pico("mixtral"), tokenizer):
        each.save_pretrained(tmp_path / "mixture")
    return tmp_path / "mixture"


def trained(base, data, folder, plan="all", **options):
    options = {"max_steps": 10, "learning_rate": 1e-2, "device": "cpu", "lora_r": 4, "target_modules": "mlp", **options}
    return tune(str(base), str(data), plan, output_dir=folder, **options)


def test_a_rank_for_each_block_in_peft_as_here(mixture, sums, pico, tmp_path):
    run = trained(mixture, sums, tmp_path / "run", "4,0,2")
    targets = json.loads((run.folder / "plan.json").read_text())["targets"]
    assert [(target["block"], target["rank"]) for target in targets] == [(0, 4), (0, 4), (2, 2), (2, 2)]
    assert sum(target["parameters"] for target in targets) == 4 * (4 + 2) * ((96 + 32) + (32 + 48))
    ids = torch.arange(3, 15)[None]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", RuntimeWarning)  # PEFT's, of patterns that do match
        theirs = PeftModel.from_pretrained(pico("mixtral"), run.path).eval()
        ours = load_pair(str(mixture), str(run.path)).tuned[0].model
        torch.testing.assert_close(ours(input_ids=ids).logits, theirs(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(pico("mixtral")(input_ids=ids).logits, ours(input_ids=ids).logits, atol=1e-3)


def test_the_anchor_holds_experts_under_adapters(mixture, sums, tmp_path):
    """What falls in the top block of the experts' own singular directions is what it keeps small."""
    held = {"anchor": "rpsft", "anchor_k": "8", "anchor_lambda": 100.0, "target_modules": "down_proj"}
    free = {"target_modules": "down_proj"}
    drifts = {}
    for name, options in {"free": free, "held": held}.items():
        run = trained(mixture, sums, tmp_path / name, **options)
        pair, notes = load_pair(str(mixture), str(run.path)), []
        wanted = frozenset({"block_drift", "delta_rel"})
        rows = WeightComparison(pair.base, pair.tuned[0], 3, wanted, frozenset(range(3)), 8, notes=notes).rows()
        drifts[name] = {(row.metric, row.layer): row.value for row in rows if row.module == "down_proj"}
    for layer in range(3):
        assert 0 < drifts["held"]["block_drift", layer] < drifts["free"]["block_drift", layer] / 2
        assert drifts["held"]["delta_rel", layer] > 1e-3
