"""Groups of channels: each mask is for what its name says in the model itself, and nothing is left without one."""

import copy

import pytest
import torch

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.tuning.carve.channels import ChannelGroups

IDS = torch.tensor([[5, 9, 120, 33, 7, 250]])
EIGHT = {"attn_read", "q", "k", "v", "attn_write", "ffn_read", "ffn_hidden", "ffn_write"}
EXPERTS = ("mixtral", "olmoe", "qwen3_moe")
# what each norm of a block belongs to, where a family's names would mislead
NORMS = {
    "llama": {"input_layernorm": "attn_read", "post_attention_layernorm": "ffn_read"},
    "olmo2": {"post_attention_layernorm": "attn_write", "post_feedforward_layernorm": "ffn_write"},
    "gemma2": {
        "input_layernorm": "attn_read",
        "post_attention_layernorm": "attn_write",
        "pre_feedforward_layernorm": "ffn_read",
        "post_feedforward_layernorm": "ffn_write",
    },
    "gpt2": {"ln_1": "attn_read", "ln_2": "ffn_read"},
    "gpt_neox": {"input_layernorm": "attn_read", "post_attention_layernorm": "ffn_read"},
}


def named(groups, name):
    """Group names of a parameter, dimension by dimension."""
    channels = groups.channels[name]
    found = []
    for index in channels.index:
        found.append(
            None
            if index is None
            else {
                each.name
                for each in groups.layers[channels.layer]
                for i in index
                if each.start <= i < each.start + each.size
            }
        )
    return found


def test_a_block_has_the_published_groups(family, pico):
    anatomy = Anatomy.of(pico(family))
    groups = ChannelGroups.of(anatomy)
    own = {group.name for group in groups.layers[1]}
    assert own >= (EIGHT - {"ffn_read", "ffn_hidden", "ffn_write"} | {"experts"} if family in EXPERTS else EIGHT)
    assert set(groups.channels) == set(dict(anatomy.model.named_parameters()))
    for name, channels in groups.channels.items():
        shape = anatomy.model.get_parameter(name).shape
        assert [None if each is None else len(each) for each in channels.index] == [
            None if each is None else side for each, side in zip(channels.index, shape, strict=True)
        ]
        assert any(each is not None for each in channels.index)
    assert groups.total == sum(group.size for own in groups.layers.values() for group in own)


@pytest.mark.parametrize("norms_of", NORMS)
def test_norms_go_with_the_stream_they_feed_or_write_to(norms_of, pico):
    groups = ChannelGroups.of(Anatomy.of(pico(norms_of)))
    found = {
        name.split(".")[-2]: next(iter(named(groups, name)[0]))
        for name in groups.channels
        if ".1." in name and name.endswith("weight") and "norm" in name.split(".")[-2] + "norm" * ("ln_" in name)
    }
    assert {name: group for name, group in found.items() if name in NORMS[norms_of]} == NORMS[norms_of]


@pytest.mark.parametrize(("group", "role"), [("v", "o_proj"), ("ffn_hidden", "down_proj")])
def test_hidden_channels_are_those_that_the_next_projection_reads(family, pico, group, role):
    """What a channel's rows make changes those inputs of the next projection that its mask decides of, and no other."""
    if family in EXPERTS and group == "ffn_hidden":
        pytest.skip("experts have a mask each")
    model = pico(family)
    anatomy = Anatomy.of(model)
    groups = ChannelGroups.of(anatomy)
    start = next(each.start for each in groups.layers[0] if each.name == group)
    (reader,) = [each for each in anatomy.projections.values() if each.layer == 0 and each.role == role]
    columns = groups.channels[reader.name].index[0 if reader.transposed else 1]
    assert columns is not None
    module = model.get_submodule(reader.name.removesuffix(".weight"))

    def read():
        seen = []
        hook = module.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
        with torch.no_grad():
            model(input_ids=IDS, use_cache=False)
        hook.remove()
        return seen[0].flatten(0, -2)

    before = read()
    for channel in (0, int(columns.max()) - start):
        kept = copy.deepcopy(model.state_dict())
        with torch.no_grad():
            for name, channels in groups.channels.items():
                rows = channels.index[1 if anatomy.projections[name].transposed else 0]
                if channels.layer == 0 and name != reader.name and rows is not None:
                    weight = model.get_parameter(name)
                    (weight.T if anatomy.projections[name].transposed else weight)[rows == start + channel] *= -2.0
        changed = ((read() - before).abs() > 1e-6).any(0)
        assert torch.equal(changed, columns == start + channel)
        model.load_state_dict(kept)


def test_groups_that_nothing_uses_are_left_out(pico):
    anatomy = Anatomy.of(pico("llama"))
    groups = ChannelGroups.of(anatomy, ["model.layers.2.mlp.up_proj.weight"])
    assert {layer: [group.name for group in own] for layer, own in groups.layers.items()} == {
        2: ["ffn_hidden", "ffn_read"]
    }
    assert groups.total == 48 + 32


def test_a_model_without_weights_is_refused(pico):
    with pytest.raises(MidblockError, match="without weights"):
        ChannelGroups.of(Anatomy.of(pico("llama").to("meta")))
