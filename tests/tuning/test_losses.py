"""Losses against their formulas, written out again from the logits, and against finite differences in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from midblock.base import MidblockError
from midblock.tuning.loop.scoring import top_entropy
from midblock.tuning.losses import (
    LOSSES,
    Objective,
    Scored,
    dft,
    eaft,
    importance_weights,
    iw,
    iw_published,
    kl,
    nll,
    stm,
    stm_kept,
)

ROW = torch.tensor([0, 0, 0, 1, 2, 2])
TARGETS = torch.tensor([3, 0, 4, 1, 1, 2])
OBJECTIVE = Objective(iw_temperature=0.7, kl_beta=0.3, eaft_alpha=1.5, eaft_top_k=3, stm_threshold=4.0)


def some_logits(seed=0, tokens=6, vocabulary=5):
    return torch.randn(tokens, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scored_from(logits, reference, row=ROW, targets=TARGETS):
    """All that any loss may want, from the logits of both models."""
    ours, theirs = logits.log_softmax(-1), reference.log_softmax(-1)
    pick = torch.arange(len(targets))
    divergence = (ours.exp() * (ours - theirs)).sum(-1)
    return Scored(
        ours[pick, targets], row, theirs[pick, targets], divergence, top_entropy(logits.detach(), OBJECTIVE.eaft_top_k)
    )


def by_hand(*log_probs, reference=None, divergence=None, row=None):
    def vector(values):
        return None if values is None else torch.tensor(values, dtype=torch.float64)

    row = torch.tensor(row or [0] * len(log_probs))
    return Scored(vector(log_probs).requires_grad_(), row, vector(reference), vector(divergence))


def test_nll_by_hand():
    total, count = nll(by_hand(math.log(0.5), math.log(0.25)), Objective())
    assert (total.item(), count) == (pytest.approx(math.log(8)), 2)


def test_dft_by_hand():
    total, count = dft(by_hand(math.log(0.5), math.log(0.25)), Objective())
    assert (total.item(), count) == (pytest.approx(0.5 * math.log(2) + 0.25 * math.log(4)), 2)


def test_the_gradient_of_dft_is_minus_p_at_each_token():
    scored = by_hand(math.log(0.5), math.log(0.25))
    dft(scored, Objective())[0].backward()
    assert scored.log_probs.grad.tolist() == pytest.approx([-0.5, -0.25])


def test_entropy_of_the_likeliest_tokens_by_hand():
    logits = torch.tensor([[0.5, 0.25, 0.25, 0.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]]).double().log()
    two, all_of_them = top_entropy(logits, 2), top_entropy(logits, 4)
    p = 2 / 3  # of the likelier of two, scaled to one
    assert two[0].item() == pytest.approx(-(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2))
    assert two[1].item() == all_of_them[1].item() == pytest.approx(1)
    # a token that cannot be has no share, and makes no NaN
    assert top_entropy(logits, 4)[0].item() == pytest.approx(1.5 * math.log(2) / math.log(4))
    # more tokens than there are: all of them
    assert torch.equal(top_entropy(logits[1:2], 9), all_of_them[1:2])


def test_eaft_by_hand():
    scored = Scored(
        torch.tensor([-1.0, -2.0, -3.0], requires_grad=True), ROW[:3], entropy=torch.tensor([1.0, 0.5, 0.0])
    )
    total, count = eaft(scored, Objective())
    assert (total.item(), count) == (1 * 1 + 0.5 * 2, 3)
    total.backward()
    assert scored.log_probs.grad.tolist() == [-1, -0.5, 0]
    assert eaft(scored, Objective(eaft_alpha=2.0))[0].item() == 1 + 0.25 * 2
    assert eaft(scored, Objective(eaft_alpha=0.0))[0].item() == nll(scored, Objective())[0].item()
    with pytest.raises(MidblockError, match="entropy"):
        eaft(by_hand(-1.0), Objective())


def test_stm_leaves_out_what_the_base_finds_unlikely_and_divides_by_all():
    scored = by_hand(-1.0, -2.0, -3.0, reference=[math.log(0.5), math.log(0.4), math.log(0.39)])
    objective = Objective(stm_threshold=2.5)
    assert stm_kept(scored, objective).tolist() == [True, True, False]
    total, count = stm(scored, objective)
    total.backward()
    assert (total.item(), count) == (3, 3)
    assert scored.log_probs.grad.tolist() == [-1, -1, 0]
    with pytest.raises(MidblockError, match="reference"):
        stm(by_hand(-1.0), Objective())


@pytest.mark.parametrize("loss", [iw, iw_published])
def test_iw_by_hand(loss):
    # gains ln 2 and ln 8 average to ln 4 in the first sequence; the second one's gain is ln 3
    scored = by_hand(-1.0, -2.0, -3.0, reference=[-1 - math.log(2), -2 - math.log(8), -3 - math.log(3)], row=[0, 0, 1])
    assert importance_weights(scored, 1.0).tolist() == pytest.approx([4, 4, 3])
    assert importance_weights(scored, 0.5).tolist() == pytest.approx([2, 2, 3**0.5])
    total, count = loss(scored, Objective())
    assert (total.item(), count) == (pytest.approx(4 * 1 + 4 * 2 + 3 * 3), 3)


def test_iw_lets_no_gradient_through_the_weight_and_the_published_one_does():
    reference = [-1 - math.log(2), -2 - math.log(8)]
    scored = by_hand(-1.0, -2.0, reference=reference)
    iw(scored, Objective())[0].backward()
    assert scored.log_probs.grad.tolist() == pytest.approx([-4, -4])
    scored = by_hand(-1.0, -2.0, reference=reference)
    iw_published(scored, Objective())[0].backward()
    # d(−w Σ ln p)/d ln p_t = −w − (w/2) Σ ln p
    assert scored.log_probs.grad.tolist() == pytest.approx([-4 + 2 * 3, -4 + 2 * 3])


@pytest.mark.parametrize("loss", [iw, iw_published])
@pytest.mark.parametrize("gain", [math.log(16) + 1e-6, 5.0, 1e4])
def test_the_weight_is_capped_at_sixteen_and_constant_there(loss, gain):
    scored = by_hand(-1.0, -2.0, reference=[-1 - gain, -2 - gain])
    total, _ = loss(scored, Objective())
    total.backward()
    assert total.item() == pytest.approx(16 * 3)
    assert scored.log_probs.grad.tolist() == pytest.approx([-16, -16])


def test_below_the_cap_the_weight_is_not_touched():
    gain = math.log(15.9)
    assert importance_weights(by_hand(-1.0, reference=[-1 - gain]), 1.0).item() == pytest.approx(15.9)


def test_where_the_reference_is_the_model_iw_is_nll():
    logits = some_logits().requires_grad_()
    scored = scored_from(logits, logits.detach())
    expected, count = nll(scored, OBJECTIVE)
    total, counted = iw(scored, OBJECTIVE)
    assert (total.item(), counted) == (pytest.approx(expected.item(), abs=1e-12), count)
    (ours,) = torch.autograd.grad(total, logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs)


def test_a_sequence_is_weighted_by_its_own_tokens_alone():
    scored = scored_from(some_logits(), some_logits(1))
    weights = importance_weights(scored, 1.0)
    for row in range(3):
        own = scored.row == row
        gain = (scored.log_probs - scored.reference)[own].mean()
        torch.testing.assert_close(weights[own], gain.exp().clamp(max=16).expand(own.sum()))
    disturbed = scored.log_probs.clone()
    disturbed[scored.row == 2] -= 1
    changed = importance_weights(Scored(disturbed, scored.row, scored.reference), 1.0)
    assert torch.equal(changed[:4], weights[:4])
    assert not torch.isclose(changed[4:], weights[4:]).any()


def test_kl_by_hand():
    total, count = kl(by_hand(-1.0, -2.0, divergence=[0.5, 0.25]), Objective(kl_beta=0.1))
    assert (total.item(), count) == (pytest.approx(3 + 0.1 * 0.75), 2)


def test_kl_of_equal_models_is_nll_and_so_is_its_gradient():
    logits = some_logits().requires_grad_()
    scored = scored_from(logits, logits.detach())
    total, _ = kl(scored, OBJECTIVE)
    expected, _ = nll(scored, OBJECTIVE)
    assert total.item() == pytest.approx(expected.item(), abs=1e-12)
    (ours,) = torch.autograd.grad(total, logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs)


def written_out(loss, logits, reference):
    """Each loss as one formula in probabilities; what is detached in it is taken from a detached copy."""
    p, q = logits.softmax(-1), reference.softmax(-1)
    pick = torch.arange(len(TARGETS))
    target, known = p[pick, TARGETS], q[pick, TARGETS]
    if loss == "nll":
        return -target.log().sum()
    if loss == "dft":
        return -(target.detach() * target.log()).sum()
    if loss == "kl":
        return -target.log().sum() + OBJECTIVE.kl_beta * (p * (p / q).log()).sum()
    if loss == "eaft":
        top = p.sort(-1, descending=True).values[:, : OBJECTIVE.eaft_top_k]
        share = top / top.sum(-1, keepdim=True)
        entropy = -(share * share.log()).sum(-1) / math.log(OBJECTIVE.eaft_top_k)
        return -(entropy.detach() ** OBJECTIVE.eaft_alpha * target.log()).sum()
    if loss == "stm":
        assert 0 < (1 / known <= OBJECTIVE.stm_threshold).sum() < len(known)
        return -target[1 / known <= OBJECTIVE.stm_threshold].log().sum()
    source = target if loss == "iw_published" else target.detach()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(3):
        own = row == ROW
        ratio = (source[own] / known[own]).log().mean()
        total = total - (OBJECTIVE.iw_temperature * ratio).exp().clamp(max=16) * target[own].log().sum()
    return total


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_value_and_gradient_with_respect_to_logits_are_those_of_the_formula(loss):
    logits, reference = some_logits().requires_grad_(), some_logits(1)
    total, count = LOSSES[loss].function(scored_from(logits, reference), OBJECTIVE)
    expected = written_out(loss, logits, reference)
    assert count == len(TARGETS)
    torch.testing.assert_close(total, expected)
    (ours,) = torch.autograd.grad(total, logits)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_the_gradient_is_what_central_differences_give(loss):
    """Of detached weights the differences are taken with the weights held still."""
    logits, reference = some_logits().requires_grad_(), some_logits(1)
    total, _ = LOSSES[loss].function(scored_from(logits, reference), OBJECTIVE)
    (gradient,) = torch.autograd.grad(total, logits)
    start = scored_from(logits.detach(), reference)
    held = {
        "dft": start.log_probs.exp(),
        "iw": importance_weights(start, OBJECTIVE.iw_temperature),
        "eaft": start.entropy**OBJECTIVE.eaft_alpha,
    }.get(loss)

    def value(at):
        scored = scored_from(at, reference)
        if held is not None:
            return -(held * scored.log_probs).sum()
        return LOSSES[loss].function(scored, OBJECTIVE)[0]

    step = 1e-5
    for position in range(logits.numel()):
        shift = torch.zeros(logits.numel(), dtype=torch.float64)
        shift[position] = step
        shift = shift.view_as(logits)
        numeric = (value(logits.detach() + shift) - value(logits.detach() - shift)) / (2 * step)
        assert gradient.flatten()[position].item() == pytest.approx(numeric.item(), abs=1e-8)


def test_only_the_published_weight_carries_gradient():
    logits, reference = some_logits().requires_grad_(), some_logits(1)
    scored = scored_from(logits, reference)
    (detached,) = torch.autograd.grad(iw(scored, OBJECTIVE)[0], logits, retain_graph=True)
    (published,) = torch.autograd.grad(iw_published(scored, OBJECTIVE)[0], logits)
    assert iw(scored, OBJECTIVE)[0].item() == iw_published(scored, OBJECTIVE)[0].item()
    assert not torch.allclose(detached, published, atol=1e-2)


@pytest.mark.parametrize("loss", sorted(LOSSES))
@given(lengths=st.lists(st.integers(1, 5), min_size=2, max_size=5), cut=st.integers(1, 4), seed=st.integers(0, 99))
def test_sums_and_counts_of_a_split_batch_add_up(loss, lengths, cut, seed):
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    tokens, cut = len(row), min(cut, len(lengths) - 1)
    targets = torch.randint(5, (tokens,), generator=torch.Generator().manual_seed(seed))
    logits, reference = some_logits(seed, tokens), some_logits(seed + 1, tokens)
    whole, count = LOSSES[loss].function(scored_from(logits, reference, row, targets), OBJECTIVE)
    parts = []
    for part in (row < cut, row >= cut):
        numbered = row[part] - row[part].min()
        scored = scored_from(logits[part], reference[part], numbered, targets[part])
        parts.append(LOSSES[loss].function(scored, OBJECTIVE))
    assert sum(part[0] for part in parts).item() == pytest.approx(whole.item(), rel=1e-12)
    assert sum(part[1] for part in parts) == count == tokens


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_a_batch_without_targets_weighs_nothing_and_has_a_gradient(loss):
    logits = some_logits(tokens=0).requires_grad_()
    empty = torch.zeros(0, dtype=torch.long)
    total, count = LOSSES[loss].function(scored_from(logits, logits.detach(), empty, empty), OBJECTIVE)
    assert (total.item(), count) == (0.0, 0)
    total.backward()


def test_what_a_loss_needs_is_asked_for():
    bare = Scored(torch.tensor([-1.0]), torch.tensor([0]))
    with pytest.raises(MidblockError, match="need a reference"):
        iw(bare, Objective())
    with pytest.raises(MidblockError, match="reference's distribution"):
        kl(bare, Objective())
    assert {name for name, loss in LOSSES.items() if loss.reference} == {"iw", "iw_published", "stm"}
    assert {name for name, loss in LOSSES.items() if loss.divergence} == {"kl"}
    assert {name for name, loss in LOSSES.items() if loss.entropy} == {"eaft"}
    assert {name for name, loss in LOSSES.items() if loss.kept is not None} == {"stm"}
