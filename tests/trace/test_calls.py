"""Recorded calls run blocks again to the bit, in every family; models whose blocks are no plain chain are told."""

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.trace import BlockCalls, Held, check_rerun, check_stream, record_calls, same_states, watch
from midblock.trace.calls import BlockCall

PADDED = torch.randint(3, 300, (3, 11), generator=torch.Generator().manual_seed(0))
PADDED[1, 7:] = PADDED[2, 4:] = 0


def record(model, keep=(0, 1, 2, 3)):
    anatomy = Anatomy.of(model)
    with record_calls(anatomy, keep) as ran, torch.inference_mode():
        output = anatomy.backbone(input_ids=PADDED, use_cache=False)
    return anatomy, ran, output[0]


def test_any_stretch_of_blocks_runs_again_to_the_bit(family, pico):
    model = pico(family)
    anatomy, ran, normed = record(model)
    seen = {}
    with watch(anatomy, range(-1, 3), lambda layer, states: seen.update({layer: states.clone()})), torch.no_grad():
        model(input_ids=PADDED, use_cache=False)
    assert len(ran.calls) == 3
    for first in range(4):
        # entering[b] is what left block b - 1, untouched by the blocks that read it
        assert torch.equal(ran.entering[first], seen[first - 1])
        for stop in range(first, 4):
            states = ran.run(list(anatomy.blocks), ran.entering[first], first, stop)
            assert torch.equal(states, seen[stop - 1]), (first, stop)
    check_rerun(anatomy, ran, normed, "base")


class Block(torch.nn.Module):
    """A block that is told by position and by name what to do, and gives more than its states."""

    def forward(self, states, amount, *, times):
        return states + amount * times, "attention"


def test_what_a_block_was_given_comes_along():
    calls = BlockCalls([BlockCall((2.0,), {"times": 3}), BlockCall((1.0,), {"times": 10})])
    assert calls.run([Block(), Block()], torch.zeros(1, 2, 4), 0, 2).unique().tolist() == [16.0]
    assert calls.run([Block(), Block()], torch.zeros(1, 2, 4), 1, 2).unique().tolist() == [10.0]


def test_only_chosen_states_are_kept_and_no_hook_stays(pico):
    model = pico("llama")
    _, ran, _ = record(model, keep={1, 3})
    assert sorted(ran.entering) == [1, 3]
    assert all(not block._forward_hooks and not block._forward_pre_hooks for block in model.model.layers)


def test_hooks_go_when_the_pass_breaks(pico):
    model = pico("llama")
    with pytest.raises(KeyboardInterrupt), record_calls(Anatomy.of(model), {0}):
        raise KeyboardInterrupt
    assert all(not block._forward_hooks and not block._forward_pre_hooks for block in model.model.layers)


class Altered(LlamaModel):
    """A llama with an operation of its own somewhere between its modules."""

    where = "between"

    def forward(self, input_ids=None, use_cache=False, **kwargs):
        states = self.embed_tokens(input_ids)
        places = torch.arange(input_ids.shape[1])[None]
        angles = self.rotary_emb(states, places)
        for position, block in enumerate(self.layers):
            if self.where == "skipped" and position == 2:
                continue
            states = block(states, position_embeddings=angles)
            if self.where == "between" and position == 0:
                states = states * 1.01
            if self.where == "twice" and position == 0:
                states = block(states, position_embeddings=angles)
        states = self.norm(states)
        return BaseModelOutputWithPast(last_hidden_state=states * 1.01 if self.where == "behind" else states)


class AlteredLlama(LlamaForCausalLM):
    def __init__(self, config, where):
        super().__init__(config)
        self.model = Altered(config).eval()
        self.model.where = where


@pytest.fixture
def altered(pico):
    def build(where):
        plain = pico("llama")
        model = AlteredLlama(plain.config, where).eval()
        model.load_state_dict(plain.state_dict())
        return model

    return build


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("between", "block 1 does not take what block 0 put out, so blocks cannot be run one by one"),
        ("twice", "block 0 is run more than once"),
        ("skipped", "did not go through all 3 blocks"),
    ],
)
def test_blocks_that_are_no_chain(altered, where, message):
    with pytest.raises(MidblockError, match=message):
        record(altered(where))


def test_something_behind_the_final_norm(altered):
    anatomy, ran, normed = record(altered("nowhere"))
    check_rerun(anatomy, ran, normed, "sft")
    anatomy, ran, normed = record(altered("behind"))
    with pytest.raises(MidblockError, match=r"^sft: its last block and the final norm model\.norm do not make what"):
        check_rerun(anatomy, ran, normed, "sft")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_states_that_differ_by_rounding_are_the_same(dtype):
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    grain = torch.finfo(dtype).eps
    assert same_states(states, states)
    assert same_states(states + grain * states, states)
    assert not same_states(states + 20 * grain * states, states)
    assert not same_states(states[:4], states)
    assert not same_states(states * torch.nan, states)


def test_what_is_not_finite_is_left_to_the_scores(pico):
    model = pico("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = torch.nan
    check_rerun(*record(model), "sft")


class Sharing(torch.nn.Module):
    """A block that adds up what the blocks below left in a dict and a list, and leaves its own there."""

    def __init__(self, amount):
        super().__init__()
        self.amount = torch.nn.Parameter(torch.full((4,), float(amount)))

    def forward(self, hidden_states, shared=None, seen=()):
        states = hidden_states + self.amount + shared.get("last", 0) + seen[0]
        shared["last"] = self.amount.detach().sum()
        seen[0] += 1  # in place
        return states


class Stack(torch.nn.Module):
    def __init__(self, amounts, cache=None):
        super().__init__()
        self.blocks = torch.nn.ModuleList(map(Sharing, amounts))
        self.cache = cache

    def forward(self, states):
        shared, seen = {}, [torch.zeros(4)]
        for block in self.blocks:
            states = block(states, shared=self.cache or shared, seen=seen)
        return states


def parts(model, width=4):
    """As much of an anatomy as recording asks for."""
    names = dict.fromkeys(("blocks", "embedding", "final_norm", "head", "backbone"), "")
    return Anatomy(None, model, model, model.blocks, model, torch.nn.Identity(), model, names, width)


STATES = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(2))


def recorded(model):
    with record_calls(parts(model), range(4)) as ran, torch.inference_mode():
        output = model(STATES)
    return ran, output


def test_what_blocks_wrote_is_what_it_was_each_time():
    ours, theirs = Stack((1, 2, 3)), Stack((1, 20, 3))
    ran, output = recorded(ours)
    for first in range(3):
        for _ in range(2):  # an earlier run leaves nothing behind
            assert torch.equal(ran.run(list(ours.blocks), ran.entering[first], first, 3), output)
    # a block of another model leaves its own for the blocks above: as in the whole model with that block
    mixed = Stack((1, 20, 3))
    held = Held()
    middle = ran.run(list(theirs.blocks), ran.entering[1], 1, 2, held)
    with torch.inference_mode():
        expected = mixed(STATES)
    assert torch.equal(ran.run(list(ours.blocks), middle, 2, 3, held.branched()), expected)
    assert torch.equal(ran.run(list(ours.blocks), middle, 2, 3, held.branched()), expected)
    # without what the changed block left, it would be another model
    assert not torch.equal(ran.run(list(ours.blocks), middle, 2, 3), expected)


def test_a_cache_is_refused():
    class Cache:
        def get(self, name, default):
            return default

        def update(self):
            """Caches have this."""

        def __setitem__(self, name, value):
            """What is written here cannot be taken back."""

    with pytest.raises(MidblockError, match="block 0 is given a Cache, whose content changes"):
        recorded(Stack((1, 2, 3), cache=Cache()))


def test_several_streams_are_no_stream():
    model = Stack((1, 2))
    expected = r"the embedding hands on states of shape \[1, 3, 4\], not one residual stream"
    with pytest.raises(MidblockError, match=expected), record_calls(parts(model, width=8), ()):
        model(STATES)


def test_a_stack_of_blocks_is_a_stream(family, pico, altered):
    check_stream(Anatomy.of(pico(family)), PADDED, "base")
    with pytest.raises(MidblockError, match=r"^odd: block 1 does not take what block 0 put out"):
        check_stream(Anatomy.of(altered("between")), PADDED, "odd")
