"""A model's own logits against those read off by its anatomy, in every family, and in one that does more."""

import pytest
import torch
from transformers import LlamaForCausalLM

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.data import TokenizedPrompt, make_batches
from midblock.evaluation import check_head, check_lens


@pytest.fixture(scope="module")
def batch():
    given = torch.randint(3, 300, (3, 12), generator=torch.Generator().manual_seed(1)).tolist()
    rows = [TokenizedPrompt(n, tuple(ids[: 12 - 3 * n]), 3) for n, ids in enumerate(given)]
    return make_batches(rows)[0]


class ScaledLogits(LlamaForCausalLM):
    """A model that does something to its logits that no list of families knows of."""

    def forward(self, *args, **kwargs):
        answer = super().forward(*args, **kwargs)
        answer.logits = torch.tanh(answer.logits * 3.0)
        return answer


class RemindedLogits(LlamaForCausalLM):
    """A model whose logits hang on more than its states: here on the tokens themselves."""

    def forward(self, input_ids=None, **kwargs):
        answer = super().forward(input_ids=input_ids, **kwargs)
        answer.logits = answer.logits + input_ids[..., None] / 100
        return answer


class BlendedStates(LlamaForCausalLM):
    """A model whose head is given something else than its final norm puts out."""

    def __init__(self, config):
        super().__init__(config)
        self.model.register_forward_hook(self.blend)

    @staticmethod
    def blend(module, args, output):
        output.last_hidden_state = output.last_hidden_state * 1.5
        return output


def test_what_a_model_does_to_its_logits_is_done(pico, batch):
    model = ScaledLogits(pico("llama").config).eval()
    check_lens("base", model, batch)
    ids = batch.input_ids[:1]
    with torch.no_grad():
        states = model.model(input_ids=ids).last_hidden_state
        assert torch.equal(Anatomy.of(model).logits(states), model(input_ids=ids).logits)
        # any shape of states, and the model as it was
        torch.testing.assert_close(Anatomy.of(model).logits(states[0, 3]), model(input_ids=ids).logits[0, 3])
    assert "forward" not in vars(model.model)


def test_logits_of_more_than_states_are_refused(pico, batch):
    odd = RemindedLogits(pico("llama").config).eval()
    with pytest.raises(MidblockError, match="its head lm_head alone does not make its own logits"):
        check_head("base", odd, batch)


def test_states_changed_between_norm_and_head_are_refused(pico, batch):
    odd = BlendedStates(pico("llama").config).eval()
    with pytest.raises(MidblockError, match="its head lm_head alone does not make its own logits"):
        check_lens("base", odd, batch)


def test_the_head_of_every_family_is_its_own(family, pico, batch):
    check_lens("base", pico(family), batch)
