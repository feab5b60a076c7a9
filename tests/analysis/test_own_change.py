"""Own and inherited change: a change is found in the blocks that were changed, and in no others."""

import copy

import numpy as np
import pytest
import torch

from midblock.analysis import analyze
from midblock.checkpoints import Anatomy, Pair
from midblock.data import load_dataset
from midblock.trace import check_blocks_alone, hold_states, run_backbone, watch

SMALL = {"num_samples": 8, "num_token_samples": 6, "weights": False, "precision_floor": False}
BLOCKS = 6


@pytest.fixture(scope="module")
def data():
    return load_dataset("builtin:chain_sum", num_samples=8)


def changed(base, blocks, part="", scale=0.1):
    """A copy of a model in which the weights of these blocks, or of one part of them, have moved."""
    tuned = copy.deepcopy(base)
    stream = torch.Generator().manual_seed(3)
    for block in blocks:
        for name, weight in Anatomy.of(tuned).blocks[block].named_parameters():
            if part in name and weight.ndim > 1:
                with torch.no_grad():
                    noise = torch.randn(weight.shape, generator=stream)
                    weight += scale * weight.std() * noise
    return tuned


def own_of(base, tuned, data, **options):
    table = analyze(Pair.of_models(base, {"sft": tuned}, options.pop("tokenizer")), data, **{**SMALL, **options})
    return table.curve("change_own", "sft").value.to_numpy(), table


@pytest.mark.parametrize("third", [0, 1, 2])
def test_a_change_is_placed_in_the_third_that_was_changed(third, pico, tokenizer, data):
    base = pico("llama", num_hidden_layers=BLOCKS)
    blocks = range(2 * third, 2 * third + 2)
    own, table = own_of(base, changed(base, blocks), data, tokenizer=tokenizer)
    assert (own[list(blocks)] > 1e-3).all()
    assert (np.delete(own, list(blocks)) == 0).all()
    increments = table.curve("change_increment", "sft").set_index("layer").value
    if third < 2:  # what lies above reacts, and is not told as changed
        assert (increments.loc[2 * third + 2 : BLOCKS - 1] > 0).all()
        assert (table.curve("own_share", "sft").set_index("layer").value.loc[2 * third + 2 :] == 0).all()


@pytest.mark.parametrize("part", ["self_attn", "mlp"])
def test_a_change_of_one_module_is_found(part, pico, tokenizer, data):
    base = pico("llama")
    own, _ = own_of(base, changed(base, [1], part), data, tokenizer=tokenizer)
    assert own[1] > 0
    assert own[0] == own[2] == 0


def test_a_model_does_not_differ_from_itself(pico, tokenizer, data):
    base = pico("llama")
    own, table = own_of(base, copy.deepcopy(base), data, tokenizer=tokenizer)
    assert (own == 0).all()
    assert (table.curve("change_reaction", "sft").value == 0).all()


def test_own_and_reaction_are_what_the_definition_says(pico):
    """[f_s(h_s) − h_s] − [f_s(h_b) − h_b] computed apart is what is left of the increment, token by token."""
    base = pico("llama").double()
    tuned = changed(base, [0, 1, 2])
    ids = torch.arange(3, 20)[None]
    ours, theirs = (Anatomy.of(model) for model in (base, tuned))
    h_b, h_s = (hold_states(anatomy, ids, calls=True) for anatomy in (ours, theirs))
    for block in range(3):
        own = h_b.through(theirs, block) - h_b.states[block]
        on_theirs = h_s.through(theirs, block) - h_s.states[block - 1]
        reaction = on_theirs - (h_b.through(theirs, block) - h_b.states[block - 1])
        increment = (h_s.states[block] - h_b.states[block]) - (h_s.states[block - 1] - h_b.states[block - 1])
        assert float((own + reaction - increment).abs().max()) < 1e-10


def test_pooled_parts_are_what_single_prompts_give(pico, tokenizer, data):
    """change_own, change_reaction and own_share against a loop over prompts, without batches."""
    base = pico("llama")
    tuned = changed(base, [1, 2])
    _, table = own_of(base, tuned, data, tokenizer=tokenizer, num_token_samples=8, tokens="all")
    ids = [torch.tensor([tokenizer(example.text).input_ids]) for example in data]
    pair = (Anatomy.of(base), Anatomy.of(tuned))
    found = {block: ([], [], []) for block in range(3)}
    for each in ids:
        h_b, h_s = (hold_states(anatomy, each, calls=True) for anatomy in pair)
        for block, (own, reaction, norms) in found.items():
            mean = lambda states: states[0].double().mean(0)  # noqa: E731
            alone = mean(h_b.through(pair[1], block)) - mean(h_b.states[block])
            change = [mean(h_s.states[layer]) - mean(h_b.states[layer]) for layer in (block - 1, block)]
            own.append(alone)
            reaction.append(change[1] - change[0] - alone)
            norms.append(mean(h_b.states[block]).norm())
    for block, (own, reaction, norms) in found.items():
        scale = torch.stack(norms).mean()
        row = table.frame[(table.frame.layer == block) & (table.frame.n == len(ids))].set_index("metric").value
        assert row["change_own"] == pytest.approx(float(torch.stack(own).norm(dim=1).mean() / scale), rel=1e-4)
        assert row["change_reaction"] == pytest.approx(
            float(torch.stack(reaction).norm(dim=1).mean() / scale), rel=1e-3, abs=1e-7
        )


def test_the_other_way_round_runs_the_bases_blocks(pico, tokenizer, data):
    """Exchanged models: what one tells of its own blocks is what the other tells in reverse, over the other's norms."""
    base = pico("llama")
    tuned = changed(base, [1])
    _, there = own_of(base, tuned, data, tokenizer=tokenizer, metrics="change_own,change_own_reverse")
    _, back = own_of(tuned, base, data, tokenizer=tokenizer, metrics="change_own,change_own_reverse")
    at = lambda table, metric: float(table.curve(metric, "sft").value[1])  # noqa: E731
    assert at(there, "change_own") == pytest.approx(at(back, "change_own_reverse"), rel=0.1)
    assert at(there, "change_own_reverse") == pytest.approx(at(back, "change_own"), rel=0.1)


def test_blocks_alone_make_what_they_make_in_their_model(family, pico):
    """Every family: what cannot be run one by one would be refused here, and no state is written over."""
    anatomy = Anatomy.of(pico(family))
    ids = torch.arange(3, 14)[None]
    check_blocks_alone(anatomy, ids)
    seen = {}
    with watch(anatomy, range(-1, 4), lambda layer, states: seen.update({layer: states.clone()})):
        run_backbone(anatomy, ids)
    held = hold_states(anatomy, ids)
    assert all(torch.equal(held.states[layer], seen[layer]) for layer in seen)


class Overwriting(torch.nn.Module):
    """A block that adds to what it was given, in place."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, hidden_states, **options):
        before = hidden_states.clone()
        output = self.block(before, **options)
        hidden_states += 1.0
        return output


def test_a_block_that_writes_over_its_input_spoils_no_state(pico):
    model = pico("llama")
    expected = hold_states(Anatomy.of(model), torch.arange(3, 14)[None]).states
    model = copy.deepcopy(model)
    model.model.layers[1] = Overwriting(model.model.layers[1])
    held = hold_states(Anatomy.of(model), torch.arange(3, 14)[None], calls=True)
    assert torch.equal(held.states[0], expected[0])
    held.through(Anatomy.of(model), 1)
    assert torch.equal(held.states[0], expected[0])
