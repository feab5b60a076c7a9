"""Asked to stop, a run ends behind its next step with a checkpoint, and goes on to the same numbers to the bit."""

import json

import pytest
from safetensors.torch import load_file

from midblock.checkpoints import LoadSettings
from midblock.runs.where import Where
from midblock.tuning.loop.aim import Aim
from midblock.tuning.loop.course import Course
from midblock.tuning.loop.lesson import train
from midblock.tuning.loop.tune_settings import TuneSettings


class Asked(BaseException):
    """What whoever asked raises, so that the run is not taken for finished."""


class After:
    """Asks to stop behind the n-th step."""

    def __init__(self, steps):
        self.left = steps

    def due(self):
        self.left -= 1
        return self.left <= 0

    def stop(self):
        raise Asked


KINDS = {
    "lora": {"lora_dropout": 0.2},
    "full, few lines": {"method": "full", "logging_steps": 4, "gradient_accumulation_steps": 2},
    "rates by depth": {"method": "full", "also": ("embedding",), "lr_by_depth": "0.5,2"},
    "tokens left out": {"loss": "stm", "stm_threshold": 320.0, "logging_steps": 4},
    "in the warm-up": {"warmup_steps": 5, "lr_scheduler_type": "constant_with_warmup"},
}


def halt(llama, sums, folder, options, steps):
    """Train until it is asked to stop behind a step; return how often it was asked."""
    loading, settings = LoadSettings(device="cpu"), TuneSettings(layers="010", learning_rate=3e-3, **options)
    course = Course.of("tune", str(llama), str(sums), settings=settings, loop=settings, loading=loading)
    aim = Aim(target=folder / "adapter", results=lambda learned: pytest.fail("the run was taken for finished"))
    asked = After(steps)
    with pytest.raises(Asked):
        train(course, aim, Where(output_dir=folder), stop_due=asked.due, stop=asked.stop)
    return steps - asked.left


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stopped_goes_on_to_the_same_numbers(llama, sums, tmp_path, tuned, kind):
    options = {"max_steps": 7, "save_steps": 5, **KINDS[kind]}
    assert halt(llama, sums, tmp_path / "run", options, 3) == 3
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-3"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"
    resumed, whole = tuned(**options, resume=True), tuned(name="whole", **options)
    lines = [[{**line, "seconds": 0} for line in each.log] for each in (resumed, whole)]
    assert lines[0] == lines[1]
    first, second = (load_file(next(each.path.glob("*.safetensors"))) for each in (resumed, whole))
    assert all(first[name].equal(second[name]) for name in first)


def test_without_checkpoints_none_is_written(llama, sums, tmp_path):
    halt(llama, sums, tmp_path / "run", {"max_steps": 7, "save_steps": 0}, 3)
    assert not list((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))
