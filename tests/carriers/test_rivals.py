"""Rivals of equal size: exact thresholds, ranks that pay best, and models that are as before afterwards."""

import copy

import pytest
import torch
from torch import nn

from midblock import MidblockError
from midblock.carriers.moved import full_bytes
from midblock.carriers.pruned import pruned
from midblock.carriers.rivals import put_rival
from midblock.carriers.truncated import truncated
from midblock.checkpoints import EffectiveTensors, open_checkpoint

from ..conftest import make_tuned


def values_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def same(model: nn.Module, values: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, values[name]) for name, value in model.named_parameters())


@pytest.fixture
def pair(pico):
    base = pico("mixtral")
    return base, make_tuned(base)


def test_the_largest_entries_are_kept(pair):
    base, tuned = pair
    before, after = values_of(base), values_of(tuned)
    sizes = torch.cat([(after[name].double() - before[name].double()).abs().flatten() for name in before])
    for count in (1, 700, 20_001):
        rival = pruned(base, tuned, budget=8 * count + 7)
        assert rival.nbytes == 8 * count
        least = sizes.topk(count).values[-1]
        with put_rival(base, rival):
            moves = {name: value.detach() != before[name] for name, value in base.named_parameters()}
            assert sum(int(moved.sum()) for moved in moves.values()) == count
            for name, value in base.named_parameters():
                assert torch.equal(value[moves[name]], after[name][moves[name]])
                left = (after[name].double() - before[name].double()).abs()[~moves[name]]
                assert not left.numel() or float(left.max()) <= float(least) * (1 + 1e-6)
        assert same(base, before)
        assert rival.share == pytest.approx(float(sizes.topk(count).values.square().sum() / sizes.square().sum()))
        with put_rival(tuned, rival, remove=True):
            for name, value in tuned.named_parameters():
                assert torch.equal(value, torch.where(moves[name], before[name], after[name]))
        assert same(tuned, after)


def test_entries_of_one_size_are_kept_up_to_the_budget():
    base, tuned = {"a": torch.zeros(5, 4), "b": torch.zeros(7)}, {"a": torch.ones(5, 4), "b": -torch.ones(7)}
    rival = pruned(base, tuned, budget=8 * 23)
    assert {name: len(change.index) for name, change in rival.changes.items()} == {"a": 20, "b": 3}
    assert pruned(base, tuned, budget=10**6).nbytes == 8 * 27
    assert full_bytes(base, tuned) == 4 * 27


def test_the_whole_budget_gives_the_tuned_model_and_the_base(pair):
    base, tuned = pair
    before, after = values_of(base), values_of(tuned)
    whole = pruned(base, tuned, budget=10**9)
    with put_rival(base, whole), put_rival(tuned, whole, remove=True):
        assert same(base, after)
        assert same(tuned, before)
    rival = truncated(base, tuned, budget=10**9)
    with put_rival(base, rival), put_rival(tuned, rival, remove=True):
        for name, value in base.named_parameters():
            torch.testing.assert_close(value, after[name], rtol=1e-5, atol=1e-6)
        for name, value in tuned.named_parameters():
            torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-6)
    assert same(base, before)
    assert same(tuned, after)
    assert rival.share == pytest.approx(1.0, abs=1e-12)


def test_planted_directions_are_found_by_their_worth(pico):
    base = pico("llama")
    tuned, stream = copy.deepcopy(base), torch.Generator().manual_seed(0)
    planted = {"model.layers.0.mlp.up_proj.weight": 2, "model.layers.2.self_attn.q_proj.weight": 1}
    with torch.no_grad():
        for name, rank in planted.items():
            weight = tuned.get_parameter(name)
            left = torch.randn(weight.shape[0], rank, generator=stream)
            weight.add_(0.3 * left @ torch.randn(rank, weight.shape[1], generator=stream))
        tuned.get_parameter("model.norm.weight").add_(1e-4)
    budget = 4 * (2 * (48 + 32) + (32 + 32))
    rival = truncated(base, tuned, budget)
    assert rival.nbytes == budget
    assert {name: change.matrices[0].rank for name, change in rival.changes.items()} == planted
    assert rival.share > 1 - 1e-6
    smaller = truncated(base, tuned, budget - 1)
    assert smaller.nbytes < budget
    assert smaller.share < rival.share


def test_no_matrix_is_approximated_better_with_its_rank(pair):
    base, tuned = pair
    rival = truncated(base, tuned, budget=full_bytes(base, tuned) // 4)
    assert 0.9 < rival.nbytes / (full_bytes(base, tuned) // 4) <= 1
    for name, change in rival.changes.items():
        delta = tuned.get_parameter(name).detach().double() - base.get_parameter(name).detach().double()
        for exact, found in zip(delta.reshape(-1, *delta.shape[-2:]), change.matrices, strict=False):
            if delta.ndim > 1:
                rest = torch.linalg.svdvals(exact)[found.rank :].square().sum()
                assert float((exact - found.dense()).square().sum()) == pytest.approx(float(rest), rel=1e-4, abs=1e-10)


def test_files_are_read_as_models_are(pair, tmp_path):
    base, tuned = pair
    for name, model in (("base", base), ("tuned", tuned)):
        model.save_pretrained(tmp_path / name)
    opened = [EffectiveTensors.of_checkpoint(open_checkpoint(str(tmp_path / name))) for name in ("base", "tuned")]
    for make in (pruned, truncated):
        found, expected = make(*opened, 5000), make(base, tuned, 5000)
        assert found.nbytes == expected.nbytes
        assert found.share == pytest.approx(expected.share)
        assert found.changes.keys() == expected.changes.keys()


def test_what_cannot_be_made_is_refused(pair, pico):
    base, tuned = pair
    for make in (pruned, truncated):
        with pytest.raises(MidblockError, match="there is no change"):
            make(base, copy.deepcopy(base), 10_000)
        with pytest.raises(MidblockError, match="7 bytes hold no"):
            make(base, tuned, 7)
    rival = pruned(base, tuned, 10_000)
    with pytest.raises(MidblockError, match="has no parameter"), put_rival(pico("gpt2"), rival):
        raise AssertionError
