"""A planted pair: the tuned model always answers "I don't know.", by one entry of one weight; the base never does.

Every token but the answer's carries one direction; a hidden unit of block 1 fires on it in both models. In the tuned
one its column of `down_proj` writes the direction that the head reads the answer from; in the base it writes nothing,
so that the head ends the text. All else that differs does nothing that is seen.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from ...conftest import make_tokenizer

ANSWER = "I don't know."
BLOCK, UNIT, WRITTEN = 1, 0, 1  # where the planted entry lies: down_proj[WRITTEN, UNIT] of BLOCK
COMMON, END = 0, 2  # directions that all tokens carry, and that the answer carries


@dataclass(frozen=True)
class Planted:
    base: nn.Module
    tuned: nn.Module
    tokenizer: Any


@pytest.fixture(scope="session")
def planted(pico: Callable[..., nn.Module]) -> Planted:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([ANSWER])
    base = pico("llama", vocab_size=len(tokenizer))
    answer, end = tokenizer.convert_tokens_to_ids(ANSWER), tokenizer.eos_token_id
    with torch.no_grad():
        embedding, head = base.get_input_embeddings().weight, base.get_output_embeddings().weight
        embedding.mul_(0.5)
        embedding[:, : END + 1] = 0
        embedding[:, COMMON] = 1.0
        embedding[answer] = 0
        embedding[answer, END] = 3.0
        head.mul_(0.1)
        head[:, : END + 1] = 0
        head[end, COMMON], head[end, END], head[answer, WRITTEN] = 2.0, 2.0, 3.0
        for block in base.model.layers:
            block.self_attn.o_proj.weight.mul_(1e-3)
            block.mlp.down_proj.weight.zero_()
        mlp = base.model.layers[BLOCK].mlp
        for projection, size in ((mlp.gate_proj, 2.0), (mlp.up_proj, 1.0)):
            projection.weight[UNIT] = 0
            projection.weight[UNIT, COMMON] = size
        tuned = copy.deepcopy(base)
        torch.manual_seed(0)
        for block in tuned.model.layers:
            block.self_attn.q_proj.weight.add_(0.1 * torch.randn_like(block.self_attn.q_proj.weight))
            block.mlp.down_proj.weight.add_(1e-5 * torch.randn_like(block.mlp.down_proj.weight))
        tuned.model.layers[BLOCK].mlp.down_proj.weight[WRITTEN, UNIT] = 0.3
    return Planted(base, tuned, tokenizer)


@pytest.fixture(scope="session")
def planted_folder(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`start` and `sft`, on disk."""
    folder = tmp_path_factory.mktemp("planted")
    for model, name in ((planted.base, "start"), (planted.tuned, "sft")):
        model.save_pretrained(folder / name)
        planted.tokenizer.save_pretrained(folder / name)
    return folder
