"""What is read of a mixture is what the model does: an expert full of NaN shows in the tokens that are read as its."""

import pytest
import torch
from torch import nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.data import TokenizedPrompt, make_batches
from midblock.trace import run_backbone
from midblock.trace.mixture_finder import MixtureFinder
from midblock.trace.routing import Choice, watch_choices
from midblock.trace.walk import walk_whole

from ..families.zoo import make

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
# a softmax and sigmoids with a correction, groups, logits of the chosen alone, a router with a state of
# its own, experts right in the block, stored the other way round, and fewer weights than experts say
READ = ("mixtral", "deepseek_v3", "gemma4_text:experts", "gpt_oss", "qwen3_moe", "zaya", "jamba")


def find_mixtures(anatomy):
    rows = [TokenizedPrompt(number, tuple(ids), 1) for number, ids in enumerate(IDS.tolist())]
    (both,), (last,) = make_batches(rows), make_batches(rows[1:])
    finder = MixtureFinder(anatomy)
    walk_whole(finder.work("it", both, last), {"it": anatomy}, lambda found: None)
    return finder.found


def choices(anatomy, mixtures):
    found = {}
    with watch_choices(mixtures, found.__setitem__):
        run_backbone(anatomy, IDS)
    return found


def poisoned(anatomy, mixture, expert):
    """The tokens whose experts put out NaN, with one expert's weights full of them."""
    stacks = [value for value in mixture.experts.parameters() if value.ndim == 3]
    kept, seen = [value[expert].clone() for value in stacks], []
    hook = mixture.experts.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        for value in stacks:
            value[expert] = torch.nan
        run_backbone(anatomy, IDS)
        for value, weights in zip(stacks, kept, strict=True):
            value[expert] = weights
    hook.remove()
    return seen[0].flatten(0, -2).isnan().any(1)


@pytest.mark.parametrize("family", READ)
def test_the_experts_that_are_read_are_those_that_run(family):
    anatomy = Anatomy.of(make(family).eval())
    mixtures = find_mixtures(anatomy)
    read = choices(anatomy, mixtures)
    assert mixtures
    for block, mixture in mixtures.items():
        for expert in range(mixture.count):
            chosen = (read[block].experts == expert).any(1)
            assert torch.equal(poisoned(anatomy, mixture, expert), chosen)


@pytest.mark.parametrize("family", READ)
def test_a_router_asked_by_hand_says_what_its_block_did(family):
    anatomy = Anatomy.of(make(family).eval())
    mixtures, calls = find_mixtures(anatomy), {}
    read = {}
    with watch_choices(mixtures, read.__setitem__, lambda block, args, kwargs: calls.update({block: (args, kwargs)})):
        run_backbone(anatomy, IDS)
    for block, mixture in mixtures.items():
        again = mixture.ask(*calls[block])
        assert bool((again.agreement(read[block]) == 1).all())
        torch.testing.assert_close(again.shares(mixture.count), read[block].shares(mixture.count))


def test_blocks_without_experts_have_no_mixture():
    assert find_mixtures(Anatomy.of(make("llama").eval())) == {}
    assert set(find_mixtures(Anatomy.of(make("deepseek_v3").eval()))) == {1, 2}


@pytest.mark.parametrize("family", ["llama4_text", "jetmoe"])
def test_a_choice_that_is_not_handed_over_is_no_guess(family):
    with pytest.raises(MidblockError, match=r"the experts of block \d are not called with a choice for each token"):
        find_mixtures(Anatomy.of(make(family).eval()))


def test_a_router_that_puts_out_no_choice_is_not_asked():
    """DBRX chooses behind its router: what its experts are called with is read all the same."""
    anatomy = Anatomy.of(make("dbrx").eval())
    mixtures = find_mixtures(anatomy)
    assert {mixture.router for mixture in mixtures.values()} == {None}
    assert {mixture.count for mixture in mixtures.values()} == {4}
    assert all(bool((choice.experts < 4).all()) for choice in choices(anatomy, mixtures).values())
    with pytest.raises(MidblockError, match="router is not known"):
        mixtures[0].ask((), {})


class OverPrompts(nn.Module):
    """A router that looks at the whole batch: each token gets what the batch's sum says."""

    def __init__(self, own):
        super().__init__()
        self.own = own

    def forward(self, states):
        return self.own(states * states.sum(0).sign())


def test_a_choice_that_hangs_on_other_prompts_is_refused(pico):
    model = pico("mixtral")
    model.model.layers[1].mlp.gate = OverPrompts(model.model.layers[1].mlp.gate)
    with pytest.raises(MidblockError, match="the experts of block 1 depend on the other prompts of a batch"):
        find_mixtures(Anatomy.of(model))


def test_hooks_are_gone_afterwards(pico):
    anatomy = Anatomy.of(pico("mixtral"))
    mixtures = find_mixtures(anatomy)
    with watch_choices(mixtures, lambda block, choice: None, lambda block, args, kwargs: None):
        pass
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in anatomy.model.modules())


def test_shares_and_agreement_in_closed_form():
    choice = Choice(torch.tensor([[0, 2], [3, 1]]), torch.tensor([[1.0, 3.0], [2.0, 2.0]]))
    assert choice.shares(4).tolist() == [[0.25, 0, 0.75, 0], [0, 0.5, 0, 0.5]]
    other = Choice(torch.tensor([[2, 1], [1, 3]]), torch.ones(2, 2))
    assert choice.agreement(other).tolist() == [0.5, 1]
