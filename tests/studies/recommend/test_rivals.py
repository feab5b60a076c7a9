"""Rivals on cases whose answer is known."""

import copy

import numpy as np
import pytest
import torch

from midblock.base import MidblockError
from midblock.data import encode, load_dataset, make_batches
from midblock.studies.recommend.advisers import advice_from, advisers
from midblock.studies.recommend.gradients import gradient_norms
from midblock.studies.recommend.rival_states import eva_ranks, one_minus_cka, state_moments
from midblock.studies.recommend.rival_weights import above_noise, median_of_noise, spectrum_snr
from midblock.studies.recommend.rivals import RIVALS, Situation, rival_advice
from midblock.studies.recommend.score import score_advice

from .conftest import BLOCKS, PLANTED, plant


@pytest.fixture(scope="module")
def batches(folder, tokenizer):
    found = load_dataset(folder / "sums.jsonl", num_samples=12)
    return make_batches(encode(found, tokenizer, max_length=48).prompts, batch_tokens=256)


def silent(model, block):
    """A copy in which a block puts out what it is given."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        made.model.layers[block].self_attn.o_proj.weight.zero_()
        made.model.layers[block].mlp.down_proj.weight.zero_()
    return made


def test_a_block_that_puts_out_its_input_scores_nothing_by_cka(pico, batches):
    scores = one_minus_cka(state_moments(silent(pico("llama"), 1), batches))
    assert scores[1] == pytest.approx(0, abs=1e-9)
    assert min(scores[0], scores[2]) > 1e-3


def test_cka_as_it_is_written(pico, batches):
    model = pico("llama")
    moments = state_moments(model, batches)
    with torch.no_grad():
        outs = [model(input_ids=b.input_ids, output_hidden_states=True).hidden_states for b in batches]
    X, Y = (torch.cat([o[k][b.region("all")] for o, b in zip(outs, batches, strict=True)]).double() for k in (0, 1))
    X, Y = X - X.mean(0), Y - Y.mean(0)
    cka = (X.T @ Y).norm() ** 2 / ((X.T @ X).norm() * (Y.T @ Y).norm())
    assert one_minus_cka(moments)[0] == pytest.approx(float(1 - cka), abs=1e-9)


def test_eva_gives_ranks_where_variance_lies_in_few_directions(pico, batches):
    moments = state_moments(pico("llama"), batches)
    ranks = eva_ranks(moments, 4)
    assert sum(ranks) == 12
    flat = copy.deepcopy(moments)
    D = len(flat[0].total)
    flat[0].own, flat[0].total = torch.eye(D, dtype=torch.float64), torch.zeros(D, dtype=torch.float64)
    assert eva_ranks(flat, 4)[0] < ranks[0]  # all directions alike: none explains much


def test_a_planted_spike_stands_above_noise(pico):
    model = pico("llama", num_hidden_layers=6)
    assert max(above_noise(model)) < 0.05
    with torch.no_grad():
        for name in ("q_proj", "o_proj"):
            weight = getattr(model.model.layers[4].self_attn, name).weight
            u, v = torch.randn(weight.shape[0], 3), torch.randn(3, weight.shape[1])
            weight += 3 * u @ v / (weight.shape[0] * weight.shape[1]) ** 0.25
    assert int(np.argmax(above_noise(model))) == 4


def test_spectrum_is_the_programs_ratio_ranked_by_kind(pico):
    model = pico("llama")
    ratios = []
    for block in model.model.layers:
        S = torch.linalg.svdvals(block.mlp.up_proj.weight.detach().double())
        sigma = (torch.quantile(S, 0.75) - torch.quantile(S, 0.25)) / 1.349
        threshold = sigma * (1 + (32 / 48) ** 0.5)
        signal = threshold < S
        ratios.append(float(S[signal].sum() / (S[~signal].sum() if (~signal).any() else 1.0) / S.max()))
    for block in model.model.layers:  # one kind alone is left to tell them apart
        for name, weight in block.named_parameters():
            if weight.ndim > 1 and "up_proj" not in name:
                weight.data = dict(model.model.layers[0].named_parameters())[name].data
    assert np.argsort(spectrum_snr(model)).tolist() == np.argsort(ratios).tolist()


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_the_median_of_noise(beta):
    n, m = round(600 * beta), 600
    values = np.linalg.svd(np.random.default_rng(0).normal(size=(n, m)) / m**0.5, compute_uv=False) ** 2
    assert np.median(values) == pytest.approx(median_of_noise(beta), rel=0.05)


def test_gradients_pull_where_something_can_be_learnt(deep, batches):
    planted = plant(deep)
    before = {name: (value.requires_grad, value.clone()) for name, value in planted.named_parameters()}
    norms = gradient_norms(planted, batches).mean(0)
    others = [block for block in range(BLOCKS) if block not in PLANTED]
    assert norms[list(PLANTED)].min() > 10 * norms[others].max()
    for name, value in planted.named_parameters():
        assert (value.requires_grad, value.grad) == (before[name][0], None)
        assert value.equal(before[name][1])


def test_gradients_are_those_of_the_loss(pico, batches):
    model = pico("llama")
    (row,) = gradient_norms(model, batches[:1])
    model(input_ids=batches[0].input_ids, labels=batches[0].labels()).loss.backward()
    for block, norm in zip(model.model.layers, row, strict=True):
        expected = sum(float(value.grad.double().square().sum()) for value in block.parameters() if value.ndim > 1)
        assert norm == pytest.approx(expected**0.5, rel=1e-4)


def test_every_rival_says_something_or_is_left_out(pico, batches):
    situation = Situation(pico("llama", num_hidden_layers=5), batches, {"own_change": [1, 2, 3, 2, 1]})
    found = {advice.name: advice for advice in rival_advice(situation)}
    assert set(found) == set(RIVALS) - {"swap"}
    assert all(len(advice.scores) == 5 for advice in found.values())
    assert (found["uniform"].blocks, found["p1_middle"].blocks) == ((0, 1, 2, 3, 4), (1, 2, 3))
    with pytest.raises(MidblockError, match=r"eav.*eva"):
        rival_advice(situation, ["eav"])


def test_an_unknown_rival_is_refused_before_anything_is_trained(folder):
    with pytest.raises(MidblockError, match=r"eav.*eva"):
        advisers(str(folder / "nowhere"), str(folder / "sums.jsonl"), rivals=["eav"])


def test_ours_and_the_rivals_are_scored_together(piloted, folder, batches, deep):
    advice = advice_from(piloted[0], plant(deep), batches)
    assert [each.name for each in advice] == ["recommend", *RIVALS]
    thirds = {f"third {n}": list(range(4 * n, 4 * n + 4)) for n in range(3)} | {"all": list(range(BLOCKS))}
    scores = {"third 1": 1.0, "all": 0.9}
    rows = [{"plan": plan, "seed": 0, "score": scores.get(plan, 0.1)} for plan in thirds]
    scored = {each.name: each for each in score_advice(rows, thirds, advice)}
    for name in ("recommend", "own_change", "swap", "gradient_norm"):
        assert scored[name].regret.value == 0, name
    assert scored["uniform"].regret.value == pytest.approx(0.1)
