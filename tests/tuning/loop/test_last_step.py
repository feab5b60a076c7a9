"""A run never takes more steps than its plan has, wherever it is stopped and however often it goes on."""

import json

import pytest
from safetensors.torch import load_file

from midblock.base import MidblockError
from midblock.tuning.loop.resume import Waypoint


def lines_of(artifact):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in artifact.log]


def assert_same(resumed, whole):
    """All that training left is the same to the bit, and its count of steps is the plan's everywhere."""
    planned = json.loads((resumed.folder / "plan.json").read_text())["schedule"]["steps"]
    assert resumed.log[-1]["step"] == resumed.summary["steps"] == planned
    assert lines_of(resumed) == lines_of(whole)
    before, after = (load_file(next(each.path.glob("*.safetensors"))) for each in (whole, resumed))
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    drop = {"columns": "model"}  # the folder's name
    assert resumed.table.frame.drop(**drop).equals(whole.table.frame.drop(**drop))
    notes = [json.loads((each.folder / "run.json").read_text())["notes"] for each in (whole, resumed)]
    assert notes[0] == notes[1]


CONSTANT = {"lr_scheduler_type": "constant", "max_steps": 5, "save_steps": 3}
KINDS = {
    "lora": {**CONSTANT, "lora_dropout": 0.1},
    "full": {**CONSTANT, "method": "full", "anchor": "rpsft", "anchor_k": "4"},
    "epochs": {**CONSTANT, "max_steps": -1, "num_train_epochs": 1.2, "gradient_accumulation_steps": 3},
    "linear, an epoch's end": {"max_steps": 8, "save_steps": 3},
    "cached": {**CONSTANT, "max_steps": 10, "layers": "001", "prefix_cache": "on", "logging_steps": 4},
    "no checkpoints": {**CONSTANT, "save_steps": 0},
}


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_behind_the_last_step(tuned, interrupted, kind):
    whole = tuned(name="whole", **KINDS[kind])
    for attempt in range(2 if kind == "lora" else 1):
        with pytest.raises(KeyboardInterrupt):
            tuned(**KINDS[kind], resume=attempt > 0, progress=interrupted("comparing weights"))
    assert_same(tuned(**KINDS[kind], resume=True), whole)


@pytest.mark.parametrize("save_steps", [2, 3, 0])
def test_stopped_in_the_last_step_and_before_its_checkpoint(tuned, interrupted, save_steps):
    """Lines come each third step: what was counted behind the last one before a checkpoint is carried on."""
    options = {**CONSTANT, "save_steps": save_steps, "logging_steps": 3}
    whole = tuned(name="whole", **options)
    with pytest.raises(KeyboardInterrupt):
        tuned(**options, progress=interrupted("tuning", at=5))
    assert_same(tuned(**options, resume=True), whole)


def test_a_checkpoint_beyond_the_plan_is_refused(tmp_path):
    with pytest.raises(MidblockError, match="checkpoint-41 lies beyond the plan, which has 40 steps"):
        Waypoint(tmp_path / "checkpoint-41", 41).check(40)


def test_nonsense_in_the_plan_is_written_anew(tuned, interrupted, tmp_path):
    options = {**CONSTANT, "save_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        tuned(**options, progress=interrupted("tuning", at=3))
    (tmp_path / "run" / "plan.json").write_text('{"schedule": {"steps": 1e999}, "targets": 3')
    assert_same(tuned(**options, resume=True), tuned(name="whole", **options))
