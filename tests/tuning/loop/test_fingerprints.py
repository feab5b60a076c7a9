"""Fingerprints: they change with any bit and with the order, and with nothing else."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from midblock.base import MidblockError
from midblock.tuning.loop import fingerprints
from midblock.tuning.loop.fingerprints import Untouched, fingerprint

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.int64, torch.uint8)
SIZES = st.integers(1, 40)
SEEDS = st.integers(0, 2**31)


def some_tensor(size, dtype, seed):
    """Any bits at all, those of NaNs and subnormals among them."""
    width = torch.empty(0, dtype=dtype).element_size()
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (size * width,), generator=generator).to(torch.uint8).view(dtype)


@given(size=SIZES, dtype=st.sampled_from(DTYPES), seed=SEEDS, data=st.data())
def test_a_flipped_bit_changes_it(size, dtype, seed, data):
    tensor = some_tensor(size, dtype, seed)
    before = fingerprint(tensor)
    bits = tensor.view(torch.uint8)
    position, bit = data.draw(st.integers(0, len(bits) - 1)), data.draw(st.integers(0, 7))
    bits[position] ^= 1 << bit
    assert fingerprint(tensor) != before
    bits[position] ^= 1 << bit
    assert fingerprint(tensor) == before


@given(size=st.integers(2, 40), dtype=st.sampled_from(DTYPES), seed=SEEDS, data=st.data())
def test_swapping_two_unequal_elements_changes_it(size, dtype, seed, data):
    tensor = some_tensor(size, dtype, seed)
    first, second = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))
    raw = tensor.view(torch.uint8).view(size, -1)
    assume(not torch.equal(raw[first], raw[second]))
    before = fingerprint(tensor)
    raw[[first, second]] = raw[[second, first]]
    assert fingerprint(tensor) != before


@given(first=st.integers(0, 19), second=st.integers(0, 19), bit=st.integers(0, 63), seed=SEEDS)
def test_the_same_bit_flipped_in_two_words_changes_it(first, second, bit, seed):
    """Two flips of a highest bit cancel in any plain sum of 64-bit words."""
    assume(first != second)
    tensor = some_tensor(20, torch.int64, seed)
    before = fingerprint(tensor)
    flip = torch.zeros(64, dtype=torch.int64).index_fill(0, torch.tensor([bit]), 1)
    tensor[[first, second]] ^= (flip << torch.arange(64)).sum()
    assert fingerprint(tensor) != before


@given(count=st.integers(0, 25), seed=SEEDS)
def test_odd_byte_counts_lose_no_byte(count, seed):
    tensor = some_tensor(count, torch.uint8, seed)
    values = [fingerprint(tensor)]
    for position in range(count):
        changed = tensor.clone()
        changed[position] += 1
        values.append(fingerprint(changed))
    assert len(set(values)) == count + 1


def test_it_is_about_bits_not_values():
    assert fingerprint(torch.tensor([0.0])) != fingerprint(torch.tensor([-0.0]))
    nan = torch.tensor([float("nan")])
    assert fingerprint(nan) == fingerprint(nan.clone())


@given(seed=SEEDS)
def test_layout_in_memory_does_not_matter(seed):
    matrix = some_tensor(35, torch.float32, seed).view(5, 7)
    assert fingerprint(matrix.T) == fingerprint(matrix.T.contiguous())
    assert fingerprint(matrix[1:, 2:]) == fingerprint(matrix[1:, 2:].clone())
    assert fingerprint(nn.Parameter(matrix)) == fingerprint(matrix)


@pytest.mark.parametrize("offset", range(1, 9))
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_view_may_begin_anywhere(dtype, offset):
    view = some_tensor(40, dtype, 0)[offset:]
    assert fingerprint(view) == fingerprint(view.clone())


def test_scalars_and_empty_tensors():
    assert fingerprint(torch.tensor(1.0)) != fingerprint(torch.tensor(2.0))
    assert fingerprint(torch.zeros(0)) == fingerprint(torch.zeros(0, 3)) == (0, 0)


def test_words_beyond_the_first_chunk_count_too(monkeypatch):
    tensor = some_tensor(100, torch.int64, 5)
    whole = fingerprint(tensor)
    monkeypatch.setattr(fingerprints, "WORDS", 16)
    assert fingerprint(tensor) == whole
    tensor[70] ^= 1
    assert fingerprint(tensor) != whole


def test_untouched_names_the_tensor_that_changed(pico):
    model = pico("llama")
    trained = {name for name, _ in model.named_parameters() if ".layers.1." in name}
    untouched = Untouched.of(model, trained)
    with torch.no_grad():
        for name in trained:
            model.get_parameter(name).add_(1)
    assert untouched.check(model) == len(dict(model.named_parameters())) - len(trained)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3, 4] += 1e-3
    with pytest.raises(MidblockError, match=r"model\.layers\.2\.mlp\.up_proj\.weight changed during training"):
        untouched.check(model)


def test_untouched_names_the_tensor_that_is_gone():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    untouched = Untouched.of(model, {"0.weight", "0.bias"})
    model[1] = nn.Identity()
    with pytest.raises(MidblockError, match=r"1\.weight is gone"):
        untouched.check(model)


def test_buffers_that_are_saved_count_and_others_do_not():
    model = nn.Module()
    model.register_buffer("kept", torch.zeros(3))
    model.register_buffer("scratch", torch.zeros(3), persistent=False)
    untouched = Untouched.of(model, set())
    model.scratch += 1
    assert untouched.check(model) == 1
    model.kept += 1
    with pytest.raises(MidblockError, match="kept changed"):
        untouched.check(model)


def test_a_tied_head_counts_once(pico):
    model = pico("llama_tied")
    untouched = Untouched.of(model, set())
    assert untouched.check(model) == len(dict(model.named_parameters()))
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(MidblockError, match=r"embed_tokens\.weight changed"):
        untouched.check(model)
