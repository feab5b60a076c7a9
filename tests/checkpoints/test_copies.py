"""A parameter that a checkpoint stores twice: equal copies are no matter, others are refused by the names of both."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from midblock.base import MidblockError
from midblock.checkpoints import EffectiveTensors, open_checkpoint
from midblock.checkpoints.models import check_files

QUERIES = "model.layers.0.self_attn.q_proj.weight"


def rewritten(folder, change):
    """The tensors of a folder passed through a function."""
    file = folder / "model.safetensors"
    tensors = {name: value.clone() for name, value in load_file(file).items()}
    save_file(change(tensors), file, metadata={"format": "pt"})
    return open_checkpoint(str(folder))


def opened(checkpoint):
    with EffectiveTensors.of_checkpoint(checkpoint) as tensors:
        return tensors


@pytest.mark.parametrize("look", [opened, check_files])
def test_two_names_of_one_parameter(look, saved, pico):
    checkpoint = rewritten(
        saved(pico("llama"), "twice"), lambda found: found | {QUERIES.removeprefix("model."): found[QUERIES] + 1}
    )
    first, second = re.escape(QUERIES.removeprefix("model.")), re.escape(QUERIES)
    there = r" \(model\.safetensors\)"
    with pytest.raises(MidblockError, match=f"twice: {first}{there} and {second}{there} are both {second}, ") as raised:
        look(checkpoint)
    assert "\n" not in str(raised.value)


def test_of_two_equal_copies_one_is_read(saved, pico):
    model = pico("llama")
    double = {QUERIES.removeprefix("model."): model.state_dict()[QUERIES].clone()}
    checkpoint = rewritten(saved(model, "twice"), lambda found: found | double)
    check_files(checkpoint)
    with EffectiveTensors.of_checkpoint(checkpoint) as tensors:
        assert sorted(tensors.names) == sorted(model.state_dict())
        assert torch.equal(tensors.read(QUERIES), double.popitem()[1])


@pytest.mark.parametrize("look", [opened, check_files])
@pytest.mark.parametrize("differ", [False, True])
def test_a_stack_of_experts_beside_the_single_ones(look, differ, saved, pico):
    model = pico("mixtral")
    name = "model.layers.1.mlp.experts.down_proj"
    stack = model.state_dict()[name].clone()
    stack[2] += float(differ)
    checkpoint = rewritten(saved(model, "both"), lambda found: found | {name: stack})
    if not differ:
        look(checkpoint)
        return
    with pytest.raises(MidblockError, match=r"experts\.down_proj .* and .*experts\.2\.w2\.weight .* are both"):
        look(checkpoint)


@pytest.mark.parametrize("look", [opened, check_files])
def test_a_tied_head_beside_the_embedding_is_no_copy(look, saved, pico):
    embedding = "model.embed_tokens.weight"
    head = torch.randn(pico("llama_tied").state_dict()[embedding].shape)
    look(rewritten(saved(pico("llama_tied"), "tied"), lambda found: found | {"lm_head.weight": head}))


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_nothing_is_read_of_a_plain_model(family, saved, pico, monkeypatch):
    from midblock.checkpoints.safetensors_file import SafetensorsFile

    checkpoint, read = open_checkpoint(str(saved(pico(family), "plain"))), []
    monkeypatch.setattr(SafetensorsFile, "read", lambda self, name: read.append(name))
    check_files(checkpoint)
    assert read == []
