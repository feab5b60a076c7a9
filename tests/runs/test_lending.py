import pytest
import torch

from midblock.base import MidblockError
from midblock.checkpoints import Pair
from midblock.runs.lending import evaluating, lent, memory_told


@pytest.fixture
def model(pico):
    model = pico("llama")
    model.train()
    model.lm_head.eval()
    return model


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


def test_each_module_gets_its_own_mode_back(model):
    before = modes(model)
    with evaluating(model):
        assert not any(modes(model).values())
        assert not torch.is_grad_enabled()
    assert modes(model) == before
    assert torch.is_grad_enabled()


def test_modes_come_back_after_an_error_too(model):
    before = modes(model)
    with pytest.raises(ValueError, match="bug"), evaluating(model):
        raise ValueError("bug")
    assert modes(model) == before
    assert torch.is_grad_enabled()


def test_a_pair_is_given_back_as_it_came(model, tuned_from, tokenizer):
    before = modes(model)
    with lent(Pair.of_models(model, {"sft": tuned_from(model)}, tokenizer), tries="lower --batch-tokens"):
        model.eval()
    assert modes(model) == before


def test_a_lack_of_memory_is_told_as_what_it_is():
    def fail():
        with memory_told("lower --batch-tokens"):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MidblockError, match=r"out of memory on the accelerator \(lower --batch-tokens; --resume goes"):
        fail()
