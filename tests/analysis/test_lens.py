import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.analysis.lens import gather_positions, lens_positions, log_probabilities, read_logits
from midblock.checkpoints import Anatomy
from midblock.metrics.predictions import Predictions, logit_kl
from midblock.trace import run_backbone, watch

few = settings(deadline=None, max_examples=25)
# Families that do something of their own to states or logits on the way out.
HEADS = ("llama", "llama_tied", "gemma2", "cohere", "granite", "gpt2", "opt", "falcon")


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=HEADS)
def model(request, pico, tuned_from):
    # Norms start out as ones, and norming twice would then go unnoticed.
    return tuned_from(pico(request.param), amount=2.0)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))


def states_of(model, ids):
    anatomy, states = Anatomy.of(model), {}
    with watch(anatomy, range(-1, len(anatomy) + 1), states.__setitem__):
        run_backbone(anatomy, ids)
    return anatomy, states


@pytest.mark.parametrize("normed", [False, True])
def test_the_last_block_predicts_what_the_model_predicts(model, ids, normed):
    anatomy, states = states_of(model, ids)
    last = states[len(anatomy) if normed else len(anatomy) - 1]
    found = log_probabilities(read_logits(anatomy, last, normed=normed, vocabulary=300))
    with torch.inference_mode():
        expected = scipy.special.log_softmax(model(input_ids=ids).logits.double().numpy(), axis=-1)
    assert found.dtype == torch.float64
    assert np.allclose(found.numpy(), expected, atol=1e-5)


def test_earlier_blocks_predict_something_else(model, ids):
    """So the test above is not true of any state whatever."""
    anatomy, states = states_of(model, ids)
    first, last = (
        log_probabilities(read_logits(anatomy, states[layer], normed=False, vocabulary=300)) for layer in (0, 2)
    )
    assert float(logit_kl(Predictions(last, first)).min()) > 1e-4


def test_a_shared_part_of_the_vocabulary_is_a_distribution_of_its_own(model, ids):
    anatomy, states = states_of(model, ids)
    whole, part = (
        log_probabilities(read_logits(anatomy, states[1], normed=False, vocabulary=size)) for size in (300, 120)
    )
    assert part.shape[-1] == 120
    assert torch.allclose(part.exp().sum(-1), torch.ones(2, 9, dtype=torch.float64))
    assert torch.allclose(part - part[..., :1], whole[..., :120] - whole[..., :1], atol=1e-6)


masks = st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4).filter(
    lambda rows: all(any(row) for row in rows)
)


@few
@given(masks, st.integers(1, 12))
def test_positions_hit_only_tokens_that_count_and_always_the_last(rows, count):
    mask = torch.tensor(rows)
    positions = lens_positions(mask, count)
    assert positions.shape == (len(rows), count)
    assert bool(mask.gather(1, positions).all())
    assert positions[:, -1].tolist() == [max(np.flatnonzero(row)) for row in rows]
    assert bool((positions.diff(dim=1) >= 0).all())


@few
@given(masks, st.integers(1, 12))
def test_positions_repeat_only_where_tokens_are_too_few(rows, count):
    mask = torch.tensor(rows)
    for row, at in zip(mask, lens_positions(mask, count), strict=True):
        assert len(at.unique()) == min(count, int(row.sum()))


@few
@given(masks, st.integers(1, 6), st.integers(1, 5))
def test_padding_moves_no_position(rows, count, padding):
    mask = torch.tensor(rows)
    padded = torch.cat([mask, torch.zeros(len(rows), padding, dtype=torch.bool)], dim=1)
    assert torch.equal(lens_positions(padded, count), lens_positions(mask, count))


def test_positions_are_spread_evenly():
    mask = torch.ones(1, 100, dtype=torch.bool)
    assert lens_positions(mask, 4).tolist() == [[24, 49, 74, 99]]
    mask[:, :20] = False
    assert lens_positions(mask, 4).tolist() == [[39, 59, 79, 99]]


def test_gathering_keeps_values_and_dtype():
    states = gaussian(3, 5, 4).bfloat16()
    positions = torch.tensor([[0, 4], [2, 2], [1, 3]])
    expected = torch.stack([states[prompt, at] for prompt, at in enumerate(positions)])
    assert torch.equal(gather_positions(states, positions), expected)
