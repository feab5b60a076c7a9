"""Steps and epochs as announced are those that the Trainer takes."""

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from midblock.data import TokenizedPrompt
from midblock.tuning.loop.examples import TrainingExamples
from midblock.tuning.loop.schedule import epochs_of, examples_a_step, schedule_of
from midblock.tuning.loop.tune_settings import TuneSettings


def some(count):
    prompts = tuple(TokenizedPrompt(index, (3, 4, 5), 1) for index in range(count))
    return TrainingExamples(prompts, False, {"tokens": 3 * count, "target_tokens": 2 * count}, [])


def settings(batch=4, accumulate=1, epochs=1.0, max_steps=-1):
    return TuneSettings(
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        num_train_epochs=epochs,
        max_steps=max_steps,
    )


@pytest.mark.parametrize(
    ("count", "options", "steps", "epochs"),
    [
        (2000, {"batch": 4, "accumulate": 8}, 63, 1.0),
        (32, {"batch": 4}, 8, 1.0),
        (33, {"batch": 4}, 9, 1.0),
        (32, {"batch": 4, "epochs": 2.0}, 16, 2.0),
        (32, {"batch": 4, "epochs": 0.3}, 3, 0.3),
        (3, {"batch": 4, "accumulate": 8}, 1, 1.0),
        (32, {"batch": 4, "max_steps": 4}, 4, 0.5),
        (32, {"batch": 4, "accumulate": 2, "max_steps": 40}, 40, 10.0),
        (32, {"batch": 4, "epochs": 7.0, "max_steps": 16}, 16, 2.0),
    ],
)
def test_by_hand(count, options, steps, epochs):
    asked = settings(**options)
    schedule = schedule_of(asked, asked, some(count))
    assert (schedule["steps"], schedule["epochs"]) == (steps, epochs)
    assert epochs_of(asked, asked, count) == pytest.approx(epochs)
    assert (schedule["examples"], schedule["tokens"], schedule["target_tokens"]) == (count, 3 * count, 2 * count)


def test_examples_of_a_step_are_those_of_all_processes(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    asked = settings(batch=4, accumulate=8)
    assert examples_a_step(asked) == 32
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert examples_a_step(asked) == 96
    assert schedule_of(asked, asked, some(200))["steps"] == 3


@pytest.fixture(scope="module")
def bare_trainer(tmp_path_factory):
    """A real Trainer, asked only for its arithmetic."""

    def make(options, count):
        arguments = transformers.TrainingArguments(
            str(tmp_path_factory.getbasetemp() / "trainer"),
            per_device_train_batch_size=options.per_device_train_batch_size,
            gradient_accumulation_steps=options.gradient_accumulation_steps,
            num_train_epochs=options.num_train_epochs,
            max_steps=options.max_steps,
            use_cpu=True,
            report_to=[],
            dataloader_pin_memory=False,
        )
        return transformers.Trainer(torch.nn.Linear(1, 1), arguments, train_dataset=list(range(count)))

    return make


@given(data=st.data())
def test_steps_are_transformers_own(bare_trainer, data):
    count = data.draw(st.integers(1, 60))
    options = settings(
        batch=data.draw(st.integers(1, 6)),
        accumulate=data.draw(st.integers(1, 5)),
        epochs=data.draw(st.sampled_from([0.1, 0.5, 1.0, 1.7, 3.0])),
        max_steps=data.draw(st.sampled_from([-1, -1, 1, 7])),
    )
    trainer = bare_trainer(options, count)
    taken = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    assert schedule_of(options, options, some(count))["steps"] == taken[-1]
