from types import SimpleNamespace

import accelerate
import pytest
import torch
import transformers
from torch import nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, device_of

IDS = torch.tensor([[5, 9, 120, 33, 7, 250]])


def last_state(anatomy):
    kept = []
    hook = anatomy.blocks[-1].register_forward_hook(
        lambda module, args, output: kept.append(output if isinstance(output, torch.Tensor) else output[0])
    )
    with torch.inference_mode():
        anatomy.backbone(input_ids=IDS, use_cache=False)
    hook.remove()
    return kept[0]


def test_the_parts_put_together_are_the_model(family, pico):
    model = pico(family)
    anatomy = Anatomy.of(model)
    with torch.inference_mode():
        logits = anatomy.logits(anatomy.final_norm(last_state(anatomy)))
        assert torch.equal(logits, model(input_ids=IDS, use_cache=False).logits)


def test_the_parts_are_found_and_named(family, pico):
    model = pico(family)
    anatomy = Anatomy.of(model)
    assert (len(anatomy), anatomy.width) == (3, 32)
    assert len(anatomy.blocks) == model.config.num_hidden_layers
    for part, name in anatomy.names.items():
        assert model.get_submodule(name) is getattr(anatomy, part)
    assert anatomy.embedding.weight.shape == (300, 32)
    assert anatomy.head.weight.shape == (300, 32)


def test_soft_cap_and_scales_count(pico):
    capped = pico("gemma2", final_logit_softcapping=0.5)
    anatomy = Anatomy.of(capped)
    with torch.inference_mode():
        logits = anatomy.logits(anatomy.final_norm(last_state(anatomy)))
        assert torch.equal(logits, capped(input_ids=IDS).logits)
    assert logits.abs().max() <= 0.5


def test_experts_are_not_taken_for_blocks(pico):
    # As many experts as blocks: the outer list is the model's depth.
    anatomy = Anatomy.of(pico("mixtral", num_local_experts=3))
    assert anatomy.names["blocks"] == "model.layers"


def test_no_head():
    config = transformers.BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(MidblockError, match=r"no output head found in BertModel .*causal language models"):
        Anatomy.of(transformers.BertModel(config))


class Tiny(nn.Module):
    """A decoder with parts left out."""

    def __init__(self, **parts):
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=2, hidden_size=4)
        for name, part in parts.items():
            self.add_module(name, part)

    def get_input_embeddings(self):
        return getattr(self, "embedding", None)

    def get_output_embeddings(self):
        return getattr(self, "head", None)


def blocks(count=2):
    return nn.ModuleList(nn.Linear(4, 4) for _ in range(count))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "no list of 2 decoder blocks found in Tiny"),
        ({"layers": blocks(3)}, "no list of 2 decoder blocks"),
        ({"layers": nn.ModuleList([nn.Identity(), nn.Identity()])}, "no list of 2 decoder blocks"),
        ({"layers": blocks()}, "no token embedding found in Tiny"),
        ({"layers": blocks(), "embedding": nn.Embedding(9, 4)}, "no output head found in Tiny"),
        (
            {"norm": nn.LayerNorm(4), "layers": blocks(), "embedding": nn.Embedding(9, 4), "head": nn.Linear(4, 9)},
            "no final norm found in Tiny",
        ),
    ],
)
def test_a_part_that_is_missing_is_named(parts, message):
    with pytest.raises(MidblockError, match=message):
        Anatomy.of(Tiny(**parts))


def test_an_unknown_decoder_works_if_it_has_the_parts():
    parts = {"embedding": nn.Embedding(9, 4), "layers": blocks(), "norm_out": nn.LayerNorm(4), "head": nn.Linear(4, 9)}
    anatomy = Anatomy.of(Tiny(**parts))
    assert anatomy.names == {
        "blocks": "layers",
        "embedding": "embedding",
        "final_norm": "norm_out",
        "head": "head",
        "backbone": "",
    }


def test_a_vision_towers_blocks_are_not_the_decoders():
    tower = nn.Module()
    tower.add_module("layers", blocks())
    parts = {"embedding": nn.Embedding(9, 4), "layers": blocks(), "norm": nn.LayerNorm(4), "head": nn.Linear(4, 9)}
    assert Anatomy.of(Tiny(vision_tower=tower, **parts)).names["blocks"] == "layers"


def test_a_module_computes_where_accelerate_says(pico):
    model = accelerate.cpu_offload(pico("llama"), execution_device="cpu")
    embedding = Anatomy.of(model).embedding
    assert next(embedding.parameters()).device.type == "meta"
    assert device_of(embedding).type == "cpu"
    assert device_of(nn.Linear(2, 2)).type == "cpu"
