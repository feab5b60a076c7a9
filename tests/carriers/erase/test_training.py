"""Training: J falls, P alone moves, the best prompt has the loss told of it, and a killed run is an unbroken one."""

import copy

import pytest
import torch

from midblock.base import MidblockError
from midblock.carriers.erase.channels import all_channels, other_channels, overlap, written_channels
from midblock.carriers.erase.found import Keeping
from midblock.carriers.erase.training import batch_of
from midblock.checkpoints import Anatomy, soft_prompt_in
from midblock.runs.stopping import STOPPING, Stopped


def held_loss(made, values):
    """J of the held-out prompts with these vectors."""
    model = made.given(values)
    with torch.no_grad():
        return float(
            made.parts(Anatomy.of(model), soft_prompt_in(model).prompt, made.held, torch.arange(2)).total.mean()
        )


def test_j_falls_and_no_weight_moves(training):
    made = training(steps=40, every=10)
    before = copy.deepcopy(made.tuned.state_dict())
    told = []
    found = made.run(0, told.append)
    assert found.best_loss < 0.7 * found.curve[0][2]
    assert [point[0] for point in found.curve] == [0, 10, 20, 30, 40]
    assert found.best.norm(dim=1).max() <= 2.0 + 1e-5
    assert sum(told) == 40
    assert soft_prompt_in(made.tuned) is None
    for name, value in made.tuned.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_best_prompt_has_the_loss_that_is_told_of_it(training):
    made = training(steps=8, every=2, learning_rate=2.0, radius=9.0)  # steps so wide that the last is not the best
    found = made.run(1, lambda _: None)
    losses = {int(point[0]): point[2] for point in found.curve}
    assert found.best_step == min(losses, key=losses.get)
    assert found.best_loss == losses[found.best_step]
    assert held_loss(made, found.best) == pytest.approx(found.best_loss, rel=1e-5)
    assert held_loss(made, found.first) == pytest.approx(losses[0], rel=1e-5)


def test_a_stopped_training_goes_on_as_if_it_had_not_been(training, tmp_path, monkeypatch):
    whole = training().run(0, lambda _: None)
    for stop_at in (1, 3):
        keeping = Keeping(tmp_path / str(stop_at), "mine")
        asked = iter(range(100))
        with monkeypatch.context() as patch:
            patch.setattr(type(STOPPING), "due", lambda self, at=stop_at, asked=asked: next(asked) == at)
            with pytest.raises(Stopped):
                training().run(0, lambda _: None, keeping)
        again = training().run(0, lambda _: None, keeping)
        assert torch.equal(again.best, whole.best)
        assert torch.equal(again.prompt, whole.prompt)
        assert again.curve == whole.curve
        with pytest.raises(MidblockError, match="kept by another run"):
            training().run(0, lambda _: None, Keeping(tmp_path / str(stop_at), "another's"))
    (file,) = (tmp_path / "1").iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    keeping = Keeping(tmp_path / "1", "mine")
    assert torch.equal(training().run(0, lambda _: None, keeping).best, whole.best)
    assert keeping.notes == ["What was kept of start 0 was damaged: it was trained anew."]


def test_every_prompt_comes_once_a_round_and_starts_differ():
    seen = torch.cat([batch_of(step, 10, 4, 0, 0) for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert batch_of(1, 10, 4, 0, 0).tolist() == seen[4:8].tolist()
    assert batch_of(0, 10, 4, 0, 1).tolist() != seen[:4].tolist()


def test_channels_are_those_a_carrier_writes_to_or_as_many_others():
    masks = {(0, "ffn_write"): torch.tensor([True, False, False, False]),
             (0, "attn_write"): torch.tensor([False, False, True, False]),
             (1, "ffn_write"): torch.zeros(4, dtype=torch.bool),
             (1, "q"): torch.ones(4, dtype=torch.bool),
             (2, "attn_write"): torch.tensor([True, True, True, False])}  # fmt: skip
    own = written_channels([masks], 3, 4)
    assert {block: each.tolist() for block, each in own.items()} == {0: [0, 2], 2: [0, 1, 2]}
    others = other_channels(own, 4, seed=3)
    assert others[0].tolist() == [1, 3]
    assert len(others[2]) == 3
    assert 3 in others[2].tolist()
    assert overlap(others, own) == 2 / 5
    assert overlap(own, all_channels(3, 4)) == 1.0
    with pytest.raises(MidblockError, match="writes to no channel"):
        written_channels([{(1, "q"): torch.ones(4, dtype=torch.bool)}], 3, 4)
    with pytest.raises(MidblockError, match="masks have 4 channels, the model 8"):
        written_channels([masks], 3, 8)
