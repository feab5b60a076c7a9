"""A model's own logits against those read off by its anatomy, in every family, and in one that does more."""

import pytest
import torch
from transformers import LlamaForCausalLM

from midblock.base import MidblockError
from midblock.data import TokenizedPrompt, make_batches
from midblock.evaluation import check_head


@pytest.fixture(scope="module")
def batch():
    given = torch.randint(3, 300, (3, 12), generator=torch.Generator().manual_seed(1)).tolist()
    rows = [TokenizedPrompt(n, tuple(ids[: 12 - 3 * n]), 3) for n, ids in enumerate(given)]
    return make_batches(rows)[0]


class ScaledLogits(LlamaForCausalLM):
    """A model that does something to its logits that no anatomy knows of."""

    def forward(self, *args, **kwargs):
        answer = super().forward(*args, **kwargs)
        answer.logits = answer.logits * 3.0
        return answer


def test_a_head_that_is_not_all_there_is_to_the_logits_is_refused(pico, batch):
    model = pico("llama")
    check_head("base", model, batch)
    odd = ScaledLogits(model.config).eval()
    with pytest.raises(MidblockError, match="its head lm_head alone does not make its own logits"):
        check_head("base", odd, batch)


def test_the_head_of_every_family_is_its_own(family, pico, batch):
    check_head("base", pico(family), batch)
