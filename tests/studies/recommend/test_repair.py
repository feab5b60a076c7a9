"""A repair gives back what was forgotten outside the planted third, and is tested on what it was not chosen on."""

import pytest

from midblock import merge, recommend
from midblock.base import MidblockError
from midblock.checkpoints import load_pair
from midblock.interventions.merge.alphas import Alphas
from midblock.interventions.merge.blended import Blended

from .conftest import PLANTED, rows, write_rows

FAST = {"num_samples": 20, "test_samples": 40, "segments": 3, "grid": 2, "max_length": 48, "device": "cpu"}


@pytest.fixture(scope="module")
def repaired(forgetful):
    return recommend(forgetful / "base", forgetful / "tuned", data=str(forgetful / "sums.jsonl"),
                     general=str(forgetful / "general.jsonl"), output_dir=forgetful / "repair", **FAST)  # fmt: skip


def test_the_planted_third_keeps_its_tuning(repaired):
    assert repaired.says, repaired.reasons
    assert repaired.plan.blocks == tuple(PLANTED), repaired.reasons
    assert all((alpha > 0) == (block in PLANTED) for block, alpha in enumerate(repaired.alphas))
    assert repaired.confidence > 0.95


def test_the_front_holds_all_families_and_the_test_says_what_is_left(repaired):
    front = repaired.details["front"]
    assert {point["family"] for point in front} == {"uniform", "linear", "by depth"}
    tested = {row["name"]: row for row in repaired.details["tested"]}
    assert tested["base"]["gain"] == tested["base"]["forgotten"] == 0
    chosen = tested["by depth"]
    assert chosen["chosen"]
    assert chosen["forgotten_high"] < tested["tuned"]["forgotten_low"]
    assert chosen["gain"] > 0.8 * tested["tuned"]["gain"]
    assert chosen["forgotten"] < 0.1 * tested["tuned"]["forgotten"]
    assert chosen["gain"] > max(tested["uniform"]["gain"], tested["linear"]["gain"])


def test_a_checkpoint_merged_with_the_alphas_has_the_very_weights(forgetful, repaired):
    folder = merge(forgetful / "base", forgetful / "tuned", repaired.alphas, output_dir=forgetful / "merged")
    pair = load_pair(str(forgetful / "base"), str(forgetful / "tuned"), str(folder), device="cpu")
    alphas = Alphas(repaired.alphas, repaired.alphas[0], repaired.alphas[-1], {})
    blended = Blended.of(pair.base.model, pair.tuned[0].model)
    there = dict(pair.tuned[1].model.named_parameters())
    for _ in range(2):  # and back again
        for name, value in blended.move(Alphas((0.3,) * 12, 0.3, 0.3, {})).named_parameters():
            assert value.shape == there[name].shape
        for name, value in blended.move(alphas).named_parameters():
            assert value.equal(there[name]), name
    for name, value in blended.move(Alphas((0.0,) * 12, 0.0, 0.0, {})).named_parameters():
        assert value.equal(dict(pair.base.model.named_parameters())[name])


def test_validation_and_test_that_overlap_are_refused(forgetful):
    sums, general = str(forgetful / "sums.jsonl"), str(forgetful / "general.jsonl")
    pair = (forgetful / "base", forgetful / "tuned")
    for whose, more in (("the task's", {"test": sums}), ("the general", {"general_test": general})):
        with pytest.raises(MidblockError, match=rf"examples of {whose} validation set are in {whose} test set"):
            recommend(*pair, data=sums, general=general, **{**FAST, "test_samples": 60}, **more)
    other = str(write_rows(forgetful / "other.jsonl", rows(90, "{n} and {m} =")))
    found = recommend(*pair, data=sums, general=general, test=other, **{**FAST, "segments": 2, "grid": 1})
    assert found.details["tested"][0]["name"] == "base"


def test_a_model_that_forgot_nothing_is_left_as_it_is(forgetful):
    sums = str(forgetful / "sums.jsonl")
    found = recommend(forgetful / "base", forgetful / "tuned", data=sums, general=sums, **{**FAST, "segments": 2})
    assert (found.says, found.alphas) == (False, None)
    assert "forgot nothing" in found.reasons[0]
    assert "fallback" in found.headline
    with pytest.raises(MidblockError, match="there is no gain to keep"):
        recommend(forgetful / "tuned", forgetful / "base", data=sums, general=sums, **FAST)


def test_another_models_weights_are_refused(pico):
    with pytest.raises(MidblockError, match=r"lm_head.weight|weight has \["):
        Blended.of(pico("llama"), pico("llama", intermediate_size=32))
