import pytest
import torch

from midblock.base import MidblockError
from midblock.metrics.sinks import read_rule, sink_tokens, token_norms, without_sinks
from midblock.metrics.tokens import Tokens, sink_share


def test_a_rule_is_a_multiple_or_the_first_token():
    assert read_rule("10") == 10
    assert read_rule("first") is None


@pytest.mark.parametrize("text", ["", "1", "-3", "nan", "inf", "frist", "1e400"])
def test_another_rule_is_refused(text):
    with pytest.raises(MidblockError, match="sinks is"):
        read_rule(text)


def test_a_token_above_the_multiple_at_one_layer_is_a_sink_at_all():
    calm, loud = torch.ones(2, 5), torch.ones(2, 5)
    loud[0, 3] = 10.5
    loud[1, 0] = 9.5
    real = torch.ones(2, 5, dtype=torch.bool)
    found = sink_tokens([calm, loud, calm], real, 10.0)
    assert found.nonzero().tolist() == [[0, 3]]


def test_padding_is_neither_a_sink_nor_part_of_the_median():
    norms = torch.tensor([[1.0, 30.0, 1.0, 1.0, 99.0, 99.0, 99.0, 99.0]])
    real = torch.tensor([[True] * 4 + [False] * 4])
    assert sink_tokens([norms], real, 10.0).nonzero().tolist() == [[0, 1]]


def test_the_first_token_by_its_rule():
    real = torch.ones(2, 4, dtype=torch.bool)
    assert sink_tokens([], real, None).nonzero().tolist() == [[0, 0], [1, 0]]


def test_states_of_zeros_have_no_sinks():
    assert not sink_tokens([torch.zeros(1, 4)], torch.ones(1, 4, dtype=torch.bool), 10.0).any()


def test_of_a_prompt_with_nothing_else_all_tokens_stay():
    mask = torch.tensor([[True, False, False], [True, True, False]])
    sinks = torch.tensor([[True, False, False], [True, False, False]])
    assert without_sinks(mask, sinks).tolist() == [[True, False, False], [False, True, False]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_norms_are_those_of_numpy(dtype):
    states = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.allclose(token_norms(states).double(), states.double().norm(dim=-1), rtol=1e-5)


def test_sink_share_is_the_largest_tokens_part_of_the_squared_norm():
    states = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [0.0, 100.0]]])
    mask = torch.tensor([[True, True, False]])
    assert float(sink_share(Tokens(states, mask))) == pytest.approx(16 / 25)
    even = Tokens(torch.ones(1, 4, 2), torch.ones(1, 4, dtype=torch.bool))
    assert float(sink_share(even)) == pytest.approx(1 / 4)
