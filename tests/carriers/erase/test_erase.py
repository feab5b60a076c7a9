"""`erase` end to end: a behaviour that a prompt can switch off, nulls that switch nothing off, and what is refused."""

import json

import pytest
import torch

from midblock import erase
from midblock.base import MidblockError
from midblock.carriers.erase.training import Training
from midblock.carriers.erase.work import Erasing
from midblock.checkpoints import SoftPrompt, open_checkpoint
from midblock.evaluation import evaluate

SMALL = {
    "soft_tokens": 6, "radius": 3.0, "learning_rate": 0.05, "batch_size": 8, "max_steps": 60, "eval_steps": 20,
    "last_tokens": 4, "num_samples": 24, "num_validation_samples": 6, "num_test_samples": 12, "general_samples": 4,
    "max_new_tokens": 12, "starts": 2, "relearn_steps": 4, "relearn_every": 2, "relearn_samples": 6,
    "relearn_batch_size": 4, "relearn_learning_rate": 1e-2, "other": None, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(answering, tokenizer, prompts, tmp_path_factory):
    """Folders of the base and of the model that says one thing, and the prompts' file."""
    folder = tmp_path_factory.mktemp("models")
    for model, name in zip(answering, ("base", "sft"), strict=True):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {"base": str(folder / "base"), "sft": str(folder / "sft"), "data": str(prompts)}


@pytest.fixture(scope="module")
def erased(folders, tmp_path_factory):
    """A finished run, and its folder."""
    out = tmp_path_factory.mktemp("runs") / "erased"
    found = erase(folders["sft"], base=folders["base"], data=folders["data"], output_dir=out, **SMALL)
    return found, out


def test_a_planted_behaviour_is_switched_off_and_nulls_switch_off_nothing(erased):
    (cell,) = erased[0]["cells"]
    like = cell["judged"]["test"]
    assert like["before"]["value"] == 1.0
    assert like["after"]["value"] <= 0.25
    assert like["change"]["high"] < 0
    assert cell["nulls"]["start"]["after"]["value"] >= 0.75
    assert cell["verdict"] == "works"
    assert (cell["channels"], cell["matched"]) == ("all", {"blocks": 3, "share": 1.0})
    assert all(start["best_loss"] < start["curve"][0][2] for start in cell["starts"])
    assert cell["chosen"] == min(range(2), key=lambda start: cell["starts"][start]["best_loss"])
    assert cell["kl_base"]["test"]["value"] < erased[0]["plain"][1]["kl_base"]["test"]["value"]
    assert [model["rates"]["test"]["value"] for model in erased[0]["plain"]] == [0.0, 1.0]


def test_what_lies_in_the_folder_is_what_was_measured(erased, folders):
    found, out = erased
    assert found == json.loads((out / "summary.json").read_text())
    assert json.loads((out / "run.json").read_text())["status"] == "done"
    assert not (out / "partial").exists()
    soft = SoftPrompt.open(out)
    assert soft.weight_hash == open_checkpoint(folders["sft"]).weight_hash()
    lines = [json.loads(line) for line in (out / "outputs.jsonl").read_text().splitlines()]
    shown = [line["shown"] for line in lines if (line["model"], line["prompts"]) == ("sft-all", "test")]
    assert sum(shown) / len(shown) == found["cells"][0]["judged"]["test"]["after"]["value"]
    task = f"behaviour:fixed_response:{folders['data']}"
    options = {"tasks": task, "num_samples": 12, "max_new_tokens": 12, "loading": {"device": "cpu"}}
    scores = evaluate([folders["sft"], f"{folders['sft']}+{out}"], **options).scores
    assert scores["value"].tolist() == [1.0, found["cells"][0]["judged"]["test"]["after"]["value"]]


def test_tuning_brings_it_back_and_is_held_against_the_base(erased):
    base, again = erased[0]["relearning"]
    assert base["steps"] == again["steps"] == [0, 2, 4]
    assert base["against_base"] is None
    assert again["rates"][0] <= 0.5
    assert again["first"]["value"] - base["first"]["value"] == pytest.approx(again["against_base"]["value"])


def test_a_finished_run_is_read_back_and_a_stopped_one_goes_on(erased, folders, tmp_path, monkeypatch):
    found, out = erased
    options = {"base": folders["base"], "data": folders["data"], **SMALL}
    assert erase(folders["sft"], output_dir=out, resume=True, **options) == found
    with monkeypatch.context() as patch:
        patch.setattr(Erasing, "_relearning", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            erase(folders["sft"], output_dir=tmp_path / "cut", **options)
    calls = []
    monkeypatch.setattr(Training, "_step", lambda *_: calls.append(1))
    assert erase(folders["sft"], output_dir=tmp_path / "cut", resume=True, **options) == found
    assert not calls  # what was trained stays trained
    assert torch.equal(SoftPrompt.open(tmp_path / "cut").values, SoftPrompt.open(out).values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps is 0; it must be 1 or more"),
        ({"soft_tokens": 230}, "soft and 12 new ones exceeds the model's 256"),
        ({"last_tokens": 200}, "predictions at the last 200 are compared"),
        ({"grid": True}, "the model holds no carrier"),
        ({"channels": "carrier"}, "--channels all or none"),
        ({"channels": "carriers"}, "did you mean 'carrier'"),
        ({"behaviour": "fixed_respons"}, "did you mean 'fixed_response'"),
        ({"matching": "mean"}, "unknown matching"),
        ({"position": "after-bos", "kl_weight": 0.0, "state_weight": 0.0}, "nothing is left to train on"),
        ({"sft": "other"}, "leave --sft out"),
        ({"device_map": "auto", "device": "auto"}, "trained on one device"),
        ({"output_dir": None}, "erase wants a folder to write"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(folders, tmp_path, options, message):
    asked = {**SMALL, "base": folders["base"], "data": folders["data"], "output_dir": tmp_path / "run", **options}
    with pytest.raises(MidblockError, match=message) as raised:
        erase(folders["sft"], **asked)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
