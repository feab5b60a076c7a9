"""The verb end to end, on a pair whose tuned model always answers so: what is found, refused, resumed and shown."""

import json

import pytest

from midblock import carve, load_dataset, write_report
from midblock.base import MidblockError, Silent
from midblock.carriers.carve.table import read_necessity
from midblock.checkpoints import Carrier
from midblock.runs.disjoint import with_examples

SMALL = {
    "behaviour": "fixed_response",
    "num_samples": 8,
    "max_steps": 2,
    "mask_warmup_steps": 1,
    "learning_rate": 1e-9,
    "test_samples": 12,
    "max_new_tokens": 3,
    "random_draws": 1,
    "rivals": False,
    "ability_samples": 4,
    "general_samples": 4,
    "save_steps": 0,
    "device": "cpu",
}


class Killed(Silent):
    """Ends the process, as it were, when half of the table is made."""

    def phase(self, title, total):
        done = 0.0

        def advance(amount):
            nonlocal done
            done += amount
            if title.startswith("asking") and done > total / 2:
                raise KeyboardInterrupt

        return advance


@pytest.fixture(scope="module")
def carved(planted_folder):
    """The run folder and what it gave; it was killed and gone on with."""
    folder = planted_folder / "carved"
    options = {**SMALL, "output_dir": folder, "write_model": True}
    with pytest.raises(KeyboardInterrupt):
        call(planted_folder, **options, progress=Killed())
    assert list((folder / "partial" / "necessity").glob("*.json"))
    return folder, call(planted_folder, **options, resume=True)


def call(folder, data="builtin:everyday", **options):
    return carve(str(folder / "start"), str(folder / "sft"), data, **options)


def test_what_is_found(carved):
    folder, found = carved
    assert found.necessity.contender.unique().tolist() == [
        "base",
        "tuned",
        "carrier alone",
        "tuned without carrier",
        "untrained carrier alone",
        "random 1 alone",
        "tuned without random 1",
    ]
    assert found.necessity.measure.unique().tolist() == ["behaviour", "loss", "kl_base", "ability"]
    rates = found.necessity[found.necessity.measure == "behaviour"].set_index("contender").value
    assert (rates["base"], rates["tuned"]) == (0, 1)
    assert found.carrier == folder / "carrier"
    sizes = found.summary["sizes"]
    assert 0 < sizes["entries"] == Carrier.open(found.carrier).count < sizes["delta_entries"]
    assert (folder / "model" / "config.json").exists()
    assert (folder / "necessity.csv").read_text().startswith("contender,")
    assert "mask_density" in found.table.metrics
    assert not (folder / "partial").exists()
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["data"]["reference"]) == ("done", "fixed_response:builtin:everyday")


def test_training_and_test_prompts_share_none(carved):
    trained = load_dataset("fixed_response:builtin:everyday", split="train", num_samples=8)
    tested = load_dataset("fixed_response:builtin:everyday", split="test", num_samples=12)
    assert not {each.prompt for each in trained} & {each.prompt for each in tested}
    record = json.loads((carved[0] / "run.json").read_text())
    assert record["data"]["content_hash"] == trained.content_hash


def test_a_finished_run_is_read_back(carved, planted_folder):
    folder, found = carved
    before = (folder / "necessity.parquet").stat().st_mtime_ns
    again = call(planted_folder, **SMALL, output_dir=folder, write_model=True, resume=True)
    assert again.necessity.equals(found.necessity)
    assert (folder / "necessity.parquet").stat().st_mtime_ns == before
    assert read_necessity(folder).equals(found.necessity)


def test_the_page_tells_the_verdicts(carved):
    folder, found = carved
    page = write_report(folder).read_text(encoding="utf-8")
    for words in (
        "Is the carrier what it rests on?",
        "tuned without carrier",
        "mask_density",
        found.summary["headline"],
    ):
        assert words in page.replace("\u2060", "").replace("\u00a0", " ")
    assert list((folder / "figures").glob("necessity.p*"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"behaviour": None}, "no behaviour is named"),
        ({"behaviour": "stile"}, "did you mean 'style'"),
        ({"data": "style:builtin:everyday"}, "is about style, and --behaviour names fixed_response"),
        ({"behavior": "style"}, "did you mean 'behaviour'"),
        ({"general": "builtin:elswhere"}, "did you mean 'elsewhere'"),
        ({"ability": "chain_summ"}, "did you mean 'chain_sum'"),
        ({"random_draws": -1}, "random_draws is -1"),
        ({"test_samples": 1}, "test_samples is 1"),
    ],
)
def test_refused_before_anything_is_trained(planted_folder, tmp_path, changes, said):
    options = {**SMALL, "data": "builtin:everyday", **changes}
    with pytest.raises(MidblockError) as error:
        call(planted_folder, output_dir=tmp_path / "run", **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_completions_in_memory_must_show_the_behaviour(planted_folder, tmp_path):
    tested = load_dataset("builtin:everyday", num_samples=10)
    plain = with_examples(tested, [*load_dataset("builtin:everyday", split="train", num_samples=30), *tested])
    where = {"output_dir": tmp_path / "run"}
    with pytest.raises(MidblockError, match=r"\d+ of \d+ completions of builtin:everyday do not show fixed_response"):
        call(planted_folder, plain, **where, **SMALL)
    with pytest.raises(MidblockError, match="0 fall into the part 'train'"):
        call(planted_folder, tested, **where, **SMALL)
