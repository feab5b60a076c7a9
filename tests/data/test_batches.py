import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from midblock.base import MidblockError
from midblock.data import TokenizedPrompt, make_batches


@st.composite
def prompt_lists(draw):
    lengths = draw(st.lists(st.integers(1, 40), max_size=30))
    return [
        TokenizedPrompt(index, tuple(range(1, length + 1)), draw(st.integers(0, length)))
        for index, length in enumerate(lengths)
    ]


@given(prompt_lists(), st.integers(1, 200))
def test_every_prompt_once_and_whole(prompts, batch_tokens):
    found = {}
    for batch in make_batches(prompts, batch_tokens=batch_tokens, pad_id=7):
        for row, index in enumerate(batch.index.tolist()):
            assert index not in found
            found[index] = TokenizedPrompt(
                index, tuple(batch.input_ids[row, batch.attention_mask[row] == 1].tolist()), 0
            )
    assert {index: prompt.input_ids for index, prompt in found.items()} == {p.index: p.input_ids for p in prompts}


@given(prompt_lists(), st.integers(1, 200))
def test_the_budget_holds_and_nothing_is_wider_than_needed(prompts, batch_tokens):
    batches = make_batches(prompts, batch_tokens=batch_tokens)
    for batch in batches:
        assert batch.input_ids.numel() <= batch_tokens or len(batch.index) == 1
        assert batch.attention_mask.sum(1).max() == batch.input_ids.shape[1]
    widths = [batch.input_ids.shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)


@given(prompt_lists())
def test_masks(prompts):
    by_index = {prompt.index: prompt for prompt in prompts}
    for batch in make_batches(prompts, batch_tokens=64, pad_id=99):
        whole, prompt, answer = (batch.region(name) for name in ("all", "prompt", "answer"))
        assert torch.equal(prompt | answer, whole)
        assert not (prompt & answer).any()
        assert (batch.input_ids[~whole] == 99).all()
        assert torch.equal(batch.labels(), torch.where(answer, batch.input_ids, -100))
        for row, index in enumerate(batch.index.tolist()):
            assert prompt[row].sum() == by_index[index].answer_start
            # padding is on the right
            assert batch.attention_mask[row].diff().le(0).all()


@given(prompt_lists(), st.randoms())
def test_the_order_given_does_not_matter(prompts, random):
    shuffled = random.sample(prompts, len(prompts))
    for one, other in zip(make_batches(prompts), make_batches(shuffled), strict=True):
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.input_ids, other.input_ids)


def test_equal_lengths_stay_in_order():
    batch = make_batches([TokenizedPrompt(index, (1, 2, 3), 1) for index in (2, 0, 1)])[0]
    assert batch.index.tolist() == [0, 1, 2]


def test_types_and_moving():
    batch = make_batches([TokenizedPrompt(0, (1, 2, 3), 1), TokenizedPrompt(1, (4, 5), 2)])[0]
    assert (batch.input_ids.dtype, batch.attention_mask.dtype) == (torch.int64, torch.int64)
    assert batch.answer_mask.dtype == torch.bool
    assert batch.labels().tolist() == [[-100, 2, 3], [-100, -100, -100]]
    moved = batch.to("meta")
    assert moved.input_ids.device.type == moved.answer_mask.device.type == moved.index.device.type == "meta"


def test_no_prompts_no_batches():
    assert make_batches([]) == []


def test_an_empty_budget():
    with pytest.raises(MidblockError, match="a budget of 0 tokens"):
        make_batches([], batch_tokens=0)


def test_an_unknown_region():
    batch = make_batches([TokenizedPrompt(0, (1, 2, 3), 1)])[0]
    with pytest.raises(MidblockError, match=r"unknown region 'answers' .*'answer'"):
        batch.region("answers")


def test_a_batch_over_and_over():
    prompts = [TokenizedPrompt(index, tuple(range(3, 6 + index)), 2) for index in range(2)]
    (batch,) = make_batches(prompts)
    thrice = batch.repeated(3)
    assert thrice.index.tolist() == [1, 0, 1, 0, 1, 0]
    for name in ("index", "input_ids", "attention_mask", "answer_mask"):
        for copy in getattr(thrice, name).split(2):
            assert torch.equal(copy, getattr(batch, name))
