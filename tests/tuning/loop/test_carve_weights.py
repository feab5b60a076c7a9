"""Carving from references to a carrier: what is written, what is kept on the way, and what is refused."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from midblock.base import MidblockError
from midblock.checkpoints import Carrier, LoadSettings, load_model, open_checkpoint
from midblock.data import encode, load_dataset
from midblock.evaluation import mean_nll
from midblock.tuning import CarveSettings, carve_weights
from midblock.tuning.loop.log_file import LogFile

FEW = {
    "max_steps": 16, "mask_warmup_steps": 4, "learning_rate": 1e-3, "mask_learning_rate": 2.0, "sparsity_lambda": 0.1,
    "device": "cpu", "per_device_train_batch_size": 4,
}  # fmt: skip
HARDER_LATER = 3  # a seed whose first batch is the easiest of three


@pytest.fixture(scope="module")
def sft(llama, tmp_path_factory, tuned_from, tokenizer):
    """The pico Llama, all of its weights moved a little."""
    folder = tmp_path_factory.mktemp("models") / "sft"
    tuned_from(AutoModelForCausalLM.from_pretrained(llama)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def carve(llama, sft, sums, tmp_path_factory):
    def run(name="run", **options):
        folder = options.pop("output_dir", None) or tmp_path_factory.mktemp("runs") / name
        tuned = str(options.pop("tuned", sft))
        return carve_weights(str(llama), tuned, str(sums), output_dir=folder, **{**FEW, **options})

    return run


@pytest.fixture(scope="module")
def done(carve):
    return carve()


def test_what_a_run_leaves(done, sft, llama):
    carrier = Carrier.open(done.carrier)
    assert done.carrier == done.folder / "carrier"
    assert carrier.config.base == str(llama)
    assert carrier.config.tuned == str(sft)
    made = carrier.config.made
    kept, total = sum(int(on.sum()) for on in carrier.masks.values()), sum(map(len, carrier.masks.values()))
    assert (made["masks_on"], made["masks"]) == (kept, total)
    assert 0 < kept < total
    assert carrier.count == made["entries_on"] < made["entries"]
    assert done.summary["sparsity"] == pytest.approx(1 - kept / total)
    assert done.summary["headline"].startswith(f"A carrier of {kept:,} of {total:,} channels")
    assert -1 <= made["start_correlation"] <= 1
    table = done.table.select(metric="mask_density").frame
    assert {-1, 0, 1, 2, 3} == set(table.layer)
    row = table[(table.layer == 1) & (table.module == "ffn_hidden")].iloc[0]
    assert row.value == pytest.approx(float(carrier.masks[1, "ffn_hidden"].float().mean()))
    assert row.n == 48
    # the carrier is a model like any other, compared with its base as such
    moved = done.table.select(metric="delta_fro", module="block").frame
    assert set(moved.layer) >= {0, 1, 2}
    assert (moved.value > 0).all()


def test_the_log_tells_of_masks_and_budget(done):
    lines = done.log
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert all(0 < line["masks_on"] <= 1 and line["lambda"] > 0 for line in lines)
    # the budget is set behind the warm-up's last step, from the bias-corrected running mean of the plain loss
    assert [("budget" in line) for line in lines] == [line["step"] >= 4 for line in lines]
    mean = 0.0
    for line in lines[:4]:
        mean = 0.95 * mean + 0.05 * line["nll"]
    assert lines[3]["budget"] == pytest.approx(1.3 * mean / (1 - 0.95**4))
    assert [("masks_on_by_group" in line) for line in lines] == [line["step"] % 10 == 0 for line in lines]


@pytest.fixture(scope="module")
def frozen(carve):
    """Masks alone, on the same four examples in each step."""
    return carve("frozen", masks_only="sft", max_steps=8, num_samples=4)


def test_what_is_carried_is_what_the_model_was_at_the_best_step(frozen, llama, sums):
    """The loss that the log has of the batch behind that step is that of the base with the carrier in it."""
    assert frozen.summary["budget_met"]
    model = load_model(open_checkpoint(str(frozen.carrier)), LoadSettings(device="cpu", dtype="float32"))
    examples = load_dataset(str(sums), num_samples=4, seed=0)
    prompts = encode(examples, open_checkpoint(str(llama)).tokenizer(), add_eos=True)
    told = [line["nll"] for line in frozen.log]
    assert mean_nll(model, prompts).value == pytest.approx(told[frozen.summary["step"]], rel=1e-4)


@pytest.mark.parametrize("how", ["sft", "kl"])
def test_masks_alone_leave_the_tuned_values_to_the_bit(how, frozen, carve, sft):
    """Whatever is carried is the tuned model's."""
    found = frozen if how == "sft" else carve(how, masks_only=how, max_steps=6)
    tuned = AutoModelForCausalLM.from_pretrained(sft)
    carrier = Carrier.open(found.carrier)
    for name in carrier.names:
        entries = carrier.entries(name)
        assert torch.equal(entries.values, entries.taken(tuned.get_parameter(name).data)), name
    config = (found.folder / "config.yaml").read_text()
    assert ("loss: distil" in config) == (how == "kl")
    if how == "kl":  # with nearly all masks on it is nearly the tuned model
        assert 0 <= found.log[0]["loss"] < 0.1
        assert found.log[0]["divergence"] == pytest.approx(found.log[0]["loss"])


def test_weights_are_trained_where_masks_are_on(done, sft):
    tuned = AutoModelForCausalLM.from_pretrained(sft)
    carrier = Carrier.open(done.carrier)
    moved = [
        name
        for name in carrier.names
        if not torch.equal(carrier.entries(name).values, carrier.entries(name).taken(tuned.get_parameter(name).data))
    ]
    assert len(moved) > len(carrier.names) / 2


def test_stopped_and_resumed_is_uninterrupted_to_the_bit(carve, done, tmp_path, interrupted):
    """Masks, their start, the dual variable, both values of each entry and the best carrier so far go on."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        carve(output_dir=folder, save_steps=3, progress=interrupted("tuning", 11))
    assert len(LogFile(folder / "log.jsonl").read()) >= 10
    resumed = carve(output_dir=folder, save_steps=3, resume=True)
    told = ("nll", "loss", "lambda", "loss_mean", "masks_on", "budget")
    for before, after in zip(done.log, resumed.log, strict=True):
        assert {key: before.get(key) for key in told} == {key: after.get(key) for key in told}
    first, second = Carrier.open(done.carrier), Carrier.open(resumed.carrier)
    assert first.config.made == second.config.made
    assert first.names == second.names
    for name in first.names:
        assert torch.equal(first.entries(name).values, second.entries(name).values)
    for key, on in first.masks.items():
        assert torch.equal(on, second.masks[key])


def test_a_budget_that_is_never_met_is_said(carve):
    """The batches behind the warm-up are harder than its own, and nothing is learned."""
    still = {"learning_rate": 1e-12, "mask_learning_rate": 1e-12, "loss_budget": 1e-6, "seed": HARDER_LATER}
    found = carve("never", max_steps=3, mask_warmup_steps=1, **still)
    first, *later = [line["nll"] for line in found.log]
    assert min(later) > first
    assert not found.summary["budget_met"]
    assert found.summary["step"] == 3
    assert "above its budget" in found.summary["headline"]
    notes = json.loads((found.folder / "run.json").read_text())["notes"]
    assert any("was never within its budget" in note for note in notes)
    # nothing but their random start has decided of the masks
    assert found.summary["start_correlation"] > 0
    assert Carrier.open(found.carrier).count


def test_other_models_are_refused(carve, llama, pico, tokenizer, tmp_path):
    with pytest.raises(MidblockError, match="the base's weights to the bit: there is nothing to carve"):
        carve(tuned=llama)
    pico("llama", intermediate_size=40).save_pretrained(tmp_path / "narrow")
    tokenizer.save_pretrained(tmp_path / "narrow")
    with pytest.raises(MidblockError, match=r"narrow was not tuned from the base: .* is \[.*40.*\] there and"):
        carve(tuned=tmp_path / "narrow")
    pico("llama_tied").save_pretrained(tmp_path / "tied")
    tokenizer.save_pretrained(tmp_path / "tied")
    with pytest.raises(MidblockError, match=r"tied was not tuned from the base: tied has no lm_head\.weight"):
        carve(tuned=tmp_path / "tied")


def test_all_masks_off_is_refused(carve):
    with pytest.raises(MidblockError, match=r"all masks are off: the carrier would be the base .lower --lambda-max"):
        carve(sparsity="published", mask_learning_rate=1e5, sparsity_lambda=0.5, max_steps=4, mask_warmup_steps=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mask_warmup_steps": 16}, "the masks' warm-up of 16 steps leaves nothing of 16 steps"),
        ({"weight_decay": 0.1}, "weight_decay is not for carving: what is off must stay the base's to the bit"),
        ({"optim": "sgd"}, "optimizer for carving"),
        ({"layers": "010"}, "layers is not for carving"),
        ({"anchor": "rpsft"}, "anchor is not for carving"),
        ({"shard": True}, "shard is not for carving"),
        ({"loss": "dft"}, "loss for carving"),
        ({"masks_only": "both"}, "masks_only"),
        ({"sparsity": "none"}, "sparsity"),
        ({"loss_budget": 0.0}, "loss_budget is 0.0; it must be above 0"),
        ({"sparsity_lambda": 1.0}, "sparsity_lambda is 1, above lambda_max, 0.5"),
        ({"lora_r": 4}, "lora_r is about adapters"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said, carve):
    with pytest.raises(MidblockError) as caught:
        carve(**options)
    assert said in str(caught.value)


def test_settings_are_those_of_the_paper():
    settings = CarveSettings()
    found = (settings.loss_budget, settings.sparsity_lambda, settings.dual_rate, settings.mask_learning_rate)
    assert found == (0.3, 0.01, 0.1, 0.1)
    assert (settings.mask_warmup_steps, settings.lambda_max, settings.violation_clip) == (300, 0.5, 0.5)
    assert (settings.learning_rate, settings.num_train_epochs) == (2e-5, 20.0)


def test_values_are_written_as_the_files_have_them(llama, tmp_path, tuned_from, tokenizer, sums):
    """Of models stored in bfloat16 the carrier holds bfloat16: what a mask selects is exact, and half as large."""
    base = AutoModelForCausalLM.from_pretrained(llama)
    for name, model in {"base16": base, "sft16": tuned_from(base)}.items():
        model.to(torch.bfloat16).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    how = {**FEW, "masks_only": "sft", "max_steps": 6, "output_dir": tmp_path / "run"}
    found = carve_weights(str(tmp_path / "base16"), str(tmp_path / "sft16"), str(sums), **how)
    carrier, tuned = Carrier.open(found.carrier), AutoModelForCausalLM.from_pretrained(tmp_path / "sft16")
    for name in carrier.names:
        entries = carrier.entries(name)
        assert entries.values.dtype == torch.bfloat16
        assert torch.equal(entries.values, entries.taken(tuned.get_parameter(name).data))
