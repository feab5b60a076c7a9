"""`erase` end to end: a behaviour that a prompt can switch off, nulls that switch nothing off, and what is refused."""

import html
import json

import pytest
import torch

from midblock import erase
from midblock.base import MidblockError
from midblock.carriers.erase.training import Training
from midblock.carriers.erase.work import Erasing
from midblock.checkpoints import CarrierConfig, Entries, SoftPrompt, open_checkpoint, write_carrier
from midblock.evaluation import evaluate
from midblock.report.figures.erase import erased_loss, erased_rates
from midblock.report.gather import read_one
from midblock.report.sections.erase import erase_sections
from midblock.report.write import page_of

from .conftest import write_prompts

SMALL = {
    "soft_tokens": 6, "radius": 3.0, "learning_rate": 0.05, "batch_size": 8, "max_steps": 40, "eval_steps": 20,
    "last_tokens": 4, "num_samples": 24, "num_validation_samples": 6, "num_test_samples": 12, "general_samples": 2,
    "max_new_tokens": 12, "starts": 2, "relearn_steps": 2, "relearn_every": 1, "relearn_samples": 4,
    "relearn_batch_size": 4, "relearn_learning_rate": 1e-2, "other": None, "device": "cpu",
    "behaviour": "fixed_response",
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(answering, tokenizer, prompts, tmp_path_factory):
    """Folders of the base and of the model that says one thing, and the prompts' file."""
    folder = tmp_path_factory.mktemp("models")
    for model, name in zip(answering, ("base", "sft"), strict=True):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    other = write_prompts(folder / "elsewhere.jsonl", "Where do {n} {thing} grow?")
    return {"base": str(folder / "base"), "sft": str(folder / "sft"), "data": str(prompts), "other": str(other)}


@pytest.fixture(scope="module")
def erased(folders, tmp_path_factory):
    """A finished run, and its folder."""
    out = tmp_path_factory.mktemp("runs") / "erased"
    options = {**SMALL, "other": folders["other"]}
    found = erase(folders["sft"], base=folders["base"], data=folders["data"], output_dir=out, **options)
    return found, out


def test_a_planted_behaviour_is_switched_off_and_nulls_switch_off_nothing(erased):
    (cell,) = erased[0]["cells"]
    like = cell["judged"]["test"]
    assert list(cell["judged"]) == ["test", "reworded", "other"]
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
    assert base["steps"] == again["steps"] == [0, 1, 2]
    assert base["against_base"] is None
    assert again["rates"][0] <= 0.5
    assert again["first"]["value"] - base["first"]["value"] == pytest.approx(again["against_base"]["value"])


def test_a_finished_run_is_read_back_and_a_stopped_one_goes_on(erased, folders, tmp_path, monkeypatch):
    found, out = erased
    options = {"base": folders["base"], "data": folders["data"], **SMALL}
    del options["other"]
    assert erase(folders["sft"], output_dir=out, resume=True, **options, other=folders["other"]) == found
    options |= {"other": None, "starts": 1, "max_steps": 4, "eval_steps": 2, "num_test_samples": 3, "max_new_tokens": 2}
    with monkeypatch.context() as patch:
        patch.setattr(Erasing, "_relearning", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            erase(folders["sft"], output_dir=tmp_path / "cut", **options)
    calls = []
    monkeypatch.setattr(Training, "_step", lambda *_: calls.append(1))
    again = erase(folders["sft"], output_dir=tmp_path / "cut", resume=True, **options)
    assert not calls  # what was trained stays trained
    monkeypatch.undo()
    assert again == erase(folders["sft"], output_dir=tmp_path / "whole", **options)
    values = [SoftPrompt.open(tmp_path / name).values for name in ("cut", "whole")]
    assert torch.equal(*values)


@pytest.fixture(scope="module")
def gridded(folders, answering, tmp_path_factory):
    """A grid over a carrier that holds all of the change, and says that it writes to a few channels."""
    out = tmp_path_factory.mktemp("grid")
    base, tuned = (open_checkpoint(folders[name]) for name in ("base", "sft"))
    entries = {name: Entries.of(value, (None,) * value.ndim) for name, value in answering[1].named_parameters()}
    masks = {(block, group): torch.arange(32) % 4 == place for block in (0, 2)
             for place, group in enumerate(("ffn_write", "attn_write"))}  # fmt: skip
    shapes = {name: tuple(value.shape) for name, value in answering[1].named_parameters()}
    told = CarrierConfig(folders["base"], base.weight_hash(), "llama", folders["sft"], tuned.weight_hash(), shapes)
    write_carrier(out / "carved", entries, masks, told)
    small = {**SMALL, "starts": 1, "max_steps": 4, "max_new_tokens": 2, "relearn_steps": 1, "relearn_every": 1,
             "num_samples": 4, "batch_size": 4, "num_test_samples": 4, "num_validation_samples": 2,
             "general_samples": 0}  # fmt: skip
    options = {**small, "grid": True, "output_dir": out / "run"}
    return erase(str(out / "carved"), base=folders["base"], data=folders["data"], **options), out


def test_the_grid_holds_both_models_by_three_choices_of_channels(gridded, folders):
    found, out = gridded
    cells = [(cell["model"], cell["channels"]) for cell in found["cells"]]
    assert cells == [(model, channels) for model in ("carved", "sft") for channels in ("carrier", "random", "none")]
    own, random, none = (cell["matched"] for cell in found["cells"][:3])
    assert own == random == {"blocks": 2, "share": 0.5}
    assert none["blocks"] == 0
    assert found["claim"].startswith("P3's claim") or found["claim"].startswith("Of P3's claim")
    assert [entry["title"] for entry in found["relearning"]] == [
        "base",
        "carved, carrier channels",
        "sft, carrier channels",
    ]
    assert all(cell["general"] is None for cell in found["cells"])
    # a carrier of the whole change is the model it was carved from: so are its cells
    carved, sft = ([model["kl_base"][kind]["value"] for kind in ("test", "reworded")] for model in found["plain"][1:])
    assert carved == pytest.approx(sft, rel=1e-6)
    assert min(carved) > 0.01
    assert found["cells"][2]["kl_base"]["test"]["value"] == pytest.approx(found["cells"][5]["kl_base"]["test"]["value"])
    prompts = {SoftPrompt.open(out / "run" / "prompts" / f"{model}-{channels}").base for model, channels in cells[1:]}
    assert prompts == {str(out / "carved"), folders["sft"]}
    first = open_checkpoint(f"{out / 'carved'}+{out / 'run'}")
    assert len(first.carriers) == 1
    assert first.prompt.weight_hash == first.bare.weight_hash()
    with pytest.raises(MidblockError, match="a soft prompt comes last"):
        open_checkpoint(f"{folders['base']}+{out / 'run' / 'prompt'}+{out / 'carved'}")


def test_a_carrier_of_another_base_is_refused(gridded, folders, tmp_path):
    options = {**SMALL, "data": folders["data"], "output_dir": tmp_path / "run"}
    with pytest.raises(MidblockError, match=r"was carved from .* has other weights"):
        erase(str(gridded[1] / "carved"), base=folders["sft"], **options)
    assert not (tmp_path / "run").exists()


def test_the_page_tells_what_the_summary_does(gridded):
    found, out = gridded
    (section,) = erase_sections(read_one(out / "run"))
    rows = section.charts[0].data["rows"]
    assert len(rows) == 2 * (3 + 6)
    assert rows[3]["name"] == "carved, carrier channels + prompt"
    assert rows[3]["value"][0] == found["cells"][0]["judged"]["test"]["after"]["value"]
    for said in (
        html.escape(found["claim"], quote=True),
        "Tuned on the behaviour again",
        "<polyline",
        "in other words",
    ):
        assert said in section.body
    assert erased_rates(read_one(out / "run")) is not None
    assert erased_loss(read_one(out / "run")) is not None
    assert "Rate of the behaviour by cell" in page_of(read_one(out / "run"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps is 0; it must be 1 or more"),
        ({"soft_tokens": 230}, "soft and 12 new ones exceeds the model's 256"),
        ({"last_tokens": 200}, "predictions at the last 200 are compared"),
        ({"grid": True}, "the model holds no carrier"),
        ({"channels": "carrier"}, "--channels all or none"),
        ({"channels": "carriers"}, "did you mean 'carrier'"),
        ({"behaviour": None}, "no behaviour is named"),
        ({"behaviour": "style", "data": "fixed_response:x.jsonl"}, "is about fixed_response"),
        ({"data": "fixed_response:reworded:builtin:chain_sum"}, "in other words already"),
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
