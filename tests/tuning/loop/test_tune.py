"""`tune` from references to files, on real pico models."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel

from midblock.analysis import analyze
from midblock.base import MidblockError
from midblock.checkpoints import load_pair, open_checkpoint
from midblock.runs.folder import standing
from midblock.runs.record import read_record
from midblock.tuning import tune
from midblock.tuning.loop.tune import tune_draft
from midblock.tuning.place.prepared import prepare

IDS = torch.tensor([[5, 9, 40, 7, 100, 3, 17]])
ROW = json.dumps({"prompt": "1 + 2 =", "completion": " 3"}) + "\n"


def base_model(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_plain_peft_loads_the_adapter_and_gives_the_same_logits(tuned, llama):
    artifact = tuned(target_modules="all", layers="ranks:4,0,8", lora_dropout=0.1)
    ours = prepared_logits(artifact, llama)
    theirs = PeftModel.from_pretrained(base_model(llama), artifact.path)(IDS).logits
    assert torch.equal(ours, theirs)
    assert not torch.allclose(theirs, base_model(llama)(IDS).logits, atol=1e-3)


def prepared_logits(artifact, base):
    """Through our own reading of the adapter: merged weights differ by rounding, so the factors are put in by hand."""
    from safetensors.torch import load_file

    from midblock.base import LayerPlan
    from midblock.checkpoints import LoadSettings
    from midblock.tuning.loop.tune_settings import TuneSettings

    settings = TuneSettings(target_modules="all", layers="ranks:4,0,8")
    plan = LayerPlan.parse(settings.layers, 3)
    prepared = prepare(open_checkpoint(str(base)), plan, settings, LoadSettings(dtype="float32", device="cpu"))
    kept = load_file(artifact.path / "adapter_model.safetensors")
    with torch.no_grad():
        for name, value in prepared.trained.items():
            value.copy_(kept[name.replace(".default", "")])
    return prepared.model.eval()(IDS).logits


def test_the_checkpoint_of_full_tuning_differs_from_the_base_in_the_planned_block_alone(tuned, llama):
    artifact = tuned(method="full", layers="010")
    before = base_model(llama).state_dict()
    after = base_model(artifact.path).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".layers.1." in name}
    assert artifact.summary["untouched"] == {"checked": len(before) - len(changed), "changed": 0}


def test_parts_outside_the_blocks_are_trained_when_asked(tuned, llama):
    artifact = tuned(method="full", layers="010", also=("embedding", "head", "norms"), target_modules="mlp")
    before, after = base_model(llama).state_dict(), base_model(artifact.path).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    wanted = {name for name in before if "norm" in name or ".layers.1.mlp" in name or "embed" in name or "head" in name}
    assert changed == wanted


def test_the_same_seed_gives_the_same_losses_and_another_does_not(tuned):
    first, again, other = (tuned(seed=seed, name=f"run{i}", lora_dropout=0.2) for i, seed in enumerate((1, 1, 2)))
    assert first.losses == again.losses
    assert first.losses != other.losses


@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_family_trains_and_what_is_written_can_be_analyzed(family, method, pico, tokenizer, sums, tmp_path):
    pico(family).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    artifact = tune(
        str(tmp_path / "start"),
        str(sums),
        "010",
        method=method,
        target_modules="attention",
        output_dir=tmp_path / "run",
        max_steps=2,
        learning_rate=1e-2,
        device="cpu",
    )
    table = artifact.table.frame
    moved = table[(table.metric == "delta_rel") & (table.module == "attention") & (table.value > 0)]
    assert list(moved.layer) == [1]
    pair = load_pair(str(tmp_path / "start"), str(artifact.path), device="cpu")
    analyzed = analyze(pair, weights_only=True).frame
    again = analyzed[(analyzed.metric == "delta_rel") & (analyzed.module == "attention") & (analyzed.value > 0)]
    assert list(again.value) == pytest.approx(list(moved.value))


def test_gradient_accumulation_and_batch_size_make_no_difference(tuned):
    whole = tuned(per_device_train_batch_size=8, max_steps=4, name="whole")
    parts = tuned(per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=4, name="parts")
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)


def test_the_anchor_is_added_once_a_step_whatever_the_accumulation(tuned):
    held = {"method": "full", "anchor": "rpsft", "anchor_k": "8", "max_steps": 4, "learning_rate": 1e-3}
    whole = tuned(per_device_train_batch_size=8, name="whole", **held)
    parts = tuned(per_device_train_batch_size=2, gradient_accumulation_steps=4, name="parts", **held)
    assert [line["penalty"] for line in parts.log] == pytest.approx([line["penalty"] for line in whole.log], rel=1e-3)


def test_a_strong_anchor_holds_the_top_block(tuned):
    free = tuned(method="full", name="free", learning_rate=1e-2)
    held = tuned(method="full", name="held", learning_rate=1e-2, anchor="rpsft", anchor_k="8", anchor_lambda=100.0)
    drift = {}
    for name, artifact in (("free", free), ("held", held)):
        pair = load_pair(
            str(json.loads((artifact.folder / "plan.json").read_text()) and base_of(artifact)), str(artifact.path)
        )
        table = analyze(pair, weights_only=True, metrics="block_drift", subspace_rank=8).frame
        drift[name] = table[(table.module == "q_proj") & (table.layer == 1)].value.item()
    assert drift["held"] < 0.5 * drift["free"]


def base_of(artifact):
    return read_record(artifact.folder)["models"][0]["reference"]


@pytest.mark.parametrize("loss", ["nll", "kl"])
def test_the_prefix_cache_changes_no_loss(tuned, loss):
    often = {"layers": "001", "max_steps": -1, "num_train_epochs": 3, "loss": loss}
    cached = tuned(name="cached", prefix_cache="on", **often)
    plain = tuned(name="plain", prefix_cache="off", **often)
    assert cached.losses == pytest.approx(plain.losses, rel=1e-5)
    assert len(cached.losses) == 24
    prefix = json.loads((cached.folder / "plan.json").read_text())["frozen_prefix"]
    assert (prefix["computed"], prefix["served"] > 0) == (32, True)
    assert not (cached.folder / "partial").exists()


def test_recomputing_activations_changes_no_loss(tuned):
    plain, recomputed = tuned(name="plain"), tuned(name="recomputed", gradient_checkpointing=True)
    assert recomputed.losses == pytest.approx(plain.losses, rel=1e-6)


def test_what_a_run_leaves(tuned, llama):
    artifact = tuned(target_modules="mlp")
    found = {path.name for path in artifact.folder.iterdir()}
    wanted = {
        "run.json",
        "config.yaml",
        "plan.json",
        "log.jsonl",
        "layers.parquet",
        "layers.csv",
        "summary.json",
        "adapter",
    }
    assert found == wanted
    assert {path.suffix for path in artifact.path.iterdir()} <= {".json", ".safetensors", ".md", ".jinja"}
    card = (artifact.path / "README.md").read_text()
    assert "library_name: peft" in card
    assert "2604.11838" in card
    record = read_record(artifact.folder)
    assert record["status"] == "done"
    assert record["data"]["target_tokens"] > 0
    assert [line["step"] for line in artifact.log] == list(range(1, 11))
    norms = artifact.table.frame.query("metric == 'gradient_norm' and module == 'block'")
    assert list(norms.layer) == [1]


def test_a_finished_run_is_not_run_again(tuned):
    first = tuned()
    stamp = (first.folder / "run.json").stat().st_mtime_ns
    again = tuned(resume=True)
    assert again.losses == first.losses
    assert (first.folder / "run.json").stat().st_mtime_ns == stamp
    with pytest.raises(MidblockError, match="exists already"):
        tuned()


def test_a_folder_can_be_asked_whether_it_is_of_a_request(tuned, llama, sums):
    done = tuned(max_steps=1, layers="010")
    given = {"max_steps": 1, "learning_rate": 3e-3, "device": "cpu"}
    found = standing(done.folder, tune_draft(str(llama), str(sums), "010", **given))
    assert (found.same, found.finished, found.resumable) == (True, True, False)
    other = standing(done.folder, tune_draft(str(llama), str(sums), "001", **given))
    assert (other.same, other.differences) == (False, ("layers: '010' then, '001' now",))


def test_a_finished_run_on_other_data_is_not_read_back(llama, tmp_path):
    data = tmp_path / "few.jsonl"
    data.write_text(ROW * 8)
    given = {"max_steps": 1, "device": "cpu", "output_dir": tmp_path / "run"}
    tune(str(llama), str(data), "010", **given)
    data.write_text(ROW * 9)
    with pytest.raises(MidblockError, match="the data changed since"):
        tune(str(llama), str(data), "010", resume=True, **given)


def test_resuming_with_other_settings_shows_the_difference(tuned):
    tuned()
    with pytest.raises(MidblockError, match=r"learning_rate: 0\.003 then, 0\.1 now"):
        tuned(resume=True, learning_rate=0.1)


def test_a_loss_that_is_no_number_stops_before_the_step(tuned):
    with pytest.raises(MidblockError, match=r"step \d+ was not taken: its loss is .* norm nan"):
        tuned(method="full", learning_rate=100.0, weight_decay=1000.0, max_grad_norm=0, max_steps=12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": "000"}, "selects none"),
        ({"max_steps": 0}, "num_train_epochs"),
        ({"layers": "2-5"}, "names block 3"),
        ({"lora_r": 33}, "rank"),
        ({"rank_budget": 0}, "budget"),
        ({"rank_budget": 2, "layers": "all"}, "budget"),
        ({"max_length": 6}, "lose their whole completion"),
        ({"loss": "kl", "method": "full"}, "--reference"),
        ({"loss": "iw", "method": "full"}, "memory once more"),
        ({"loss": "stm", "method": "full"}, "memory once more"),
        ({"loss": "stm", "stm_threshold": 1.0}, "leaves out every target token of the first step"),
        ({"loss": "stm", "stm_threshold": 0.5}, "no perplexity is below 1"),
        ({"loss": "eaft", "eaft_top_k": 1}, "eaft_top_k is 1"),
        ({"eaft_alpha": 2.0}, "the loss nll uses no eaft_alpha"),
        ({"lr_by_depth": "1,0.5,0.2,0.1"}, "4 factors fit neither"),
        ({"anchor": "rpsft", "use_dora": True}, "DoRA"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"shard": True}, "torchrun"),
        ({"optim": "adamw_torchx"}, "did you mean 'adamw_torch'"),
        ({"learning_rat": 1.0}, "learning_rate"),
        ({"output_dir": Path(__file__)}, "is a file"),
    ],
)
def test_what_the_user_can_mend_is_said_in_one_line(tuned, options, said):
    with pytest.raises(MidblockError) as caught:
        tuned(**options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cut_is_said_and_a_k_that_takes_all_is_named(tuned):
    plans = []
    tuned(max_length=13, anchor="rpsft", anchor_k="16", announce=plans.append, num_samples=None)
    cut, full = plans[0]["notes"]
    assert "longer than 13 tokens and were cut" in cut
    assert "k_proj" in full
    assert "L2" in full
