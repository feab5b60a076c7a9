"""Going on from the last checkpoint that is whole; half a newer one is taken away."""

import json

import pytest
import torch
import transformers

from midblock.tuning.loop.resume import STATE, last_checkpoint


@pytest.fixture
def make(tmp_path):
    def write(step, state=None):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        if state is not None:
            (folder / STATE).write_text(state)
        return folder

    return write


def whole(step):
    return json.dumps({"global_step": step, "epoch": 0.5})


def test_the_newest_whole_one(tmp_path, make):
    for step in (5, 100, 20):
        make(step, whole(step))
    assert last_checkpoint(tmp_path) == (tmp_path / "checkpoint-100", 100)
    assert len(list(tmp_path.iterdir())) == 3


def test_nothing_there(tmp_path):
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("state", [None, "", whole(20)[:-5], whole(10), "{}"])
def test_half_a_newer_one_is_removed(tmp_path, make, state):
    make(10, whole(10))
    make(20, state)
    assert last_checkpoint(tmp_path) == (tmp_path / "checkpoint-10", 10)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def test_older_halves_are_not_looked_at(tmp_path, make):
    make(5)
    make(10, whole(10))
    assert last_checkpoint(tmp_path) == (tmp_path / "checkpoint-10", 10)


def test_only_halves(tmp_path, make):
    make(5)
    make(10, "{")
    assert last_checkpoint(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_other_folders_are_left_alone(tmp_path, make):
    make("best")
    make("7b")
    (tmp_path / "adapter").mkdir()
    make(3, whole(3))
    assert last_checkpoint(tmp_path) == (tmp_path / "checkpoint-3", 3)
    assert len(list(tmp_path.iterdir())) == 4


def test_the_trainer_writes_its_state_last(tmp_path, pico):
    """What tells a whole checkpoint from half of one, in the version of transformers that is installed."""
    order = []

    class Recording(transformers.Trainer):
        def _record(self, name):
            folder = tmp_path / "checkpoint-2"
            order.append((name, (folder / STATE).exists()))

        def save_model(self, *args, **kwargs):
            super().save_model(*args, **kwargs)
            self._record("model")

        def _save_optimizer_and_scheduler(self, *args):
            super()._save_optimizer_and_scheduler(*args)
            self._record("optimizer")

        def _save_rng_state(self, *args):
            super()._save_rng_state(*args)
            self._record("random state")

    ids = torch.arange(3, 11)
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=2, per_device_train_batch_size=1, use_cpu=True, report_to=[],
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Recording(pico("llama"), arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 2)
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.train()
    assert order == [("model", False), ("optimizer", False), ("random state", False)]
    assert last_checkpoint(tmp_path) == (tmp_path / "checkpoint-2", 2)
