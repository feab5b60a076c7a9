"""Models whose blocks are handed more than a stream of states."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import BaseModelOutputWithPast


class Handing(LlamaModel):
    """A llama that hands each block something made of the states below, or changes the states between two."""

    how = "beside"

    def forward(self, input_ids=None, use_cache=False, **kwargs):
        states = self.embed_tokens(input_ids)
        angles = self.rotary_emb(states, torch.arange(input_ids.shape[1])[None])
        for block in self.layers:
            beside = tuple(each * (1 + states.mean((1, 2), keepdim=True)) for each in angles)
            states = block(states, position_embeddings=beside if self.how == "beside" else angles)
            if self.how == "between":
                states = states * 1.01
        return BaseModelOutputWithPast(last_hidden_state=self.norm(states))


class HandingLlama(LlamaForCausalLM):
    def __init__(self, config, how):
        super().__init__(config)
        self.model = Handing(config).eval()
        self.model.how = how


@pytest.fixture
def handing(pico: Callable[..., nn.Module]) -> Callable[[str], nn.Module]:
    def build(how: str) -> nn.Module:
        plain = pico("llama", num_hidden_layers=4)
        model = HandingLlama(plain.config, how).eval()
        model.load_state_dict(plain.state_dict())
        return model

    return build
