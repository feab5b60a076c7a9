from types import SimpleNamespace

import pytest
import torch

from midblock.checkpoints import ATTENTION, MLP, Place, TensorReader, block_of, place, split_fused

QKV, GATE_UP = ATTENTION[:3], MLP[:2]
LLAMA = {*ATTENTION, *MLP, "norm"}
# What the tensors of a block are, family by family; with biases where the family has them.
IN_BLOCK = {
    "llama": LLAMA,
    "llama_tied": LLAMA,
    "olmo2": LLAMA,
    "qwen2": LLAMA | {"bias"},
    "qwen3": LLAMA,
    "mistral": LLAMA,
    "gemma2": LLAMA,
    "gemma3": LLAMA,
    "phi3": {"qkv", "o_proj", "gate_up", "down_proj", "norm"},
    "gpt2": {"qkv", "o_proj", "up_proj", "down_proj", "norm", "bias"},
    "gpt_neox": {"qkv", "o_proj", "up_proj", "down_proj", "norm", "bias"},
    "falcon": {"qkv", "o_proj", "up_proj", "down_proj", "norm"},
    "falcon_7b": {"qkv", "o_proj", "up_proj", "down_proj", "norm"},
    "falcon_rw": {"qkv", "o_proj", "up_proj", "down_proj", "norm"},
    "mixtral": LLAMA | {"router"},
    "olmoe": LLAMA | {"router"},
    "bloom": {"qkv", "o_proj", "up_proj", "down_proj", "norm", "bias"},
    "opt": {*ATTENTION, "up_proj", "down_proj", "norm", "bias"},
    "granite": LLAMA,
    "cohere": LLAMA,
}
OUTSIDE = {
    Place(-1, "embedding"),
    Place(-1, "position_embedding"),
    Place(-1, "norm"),
    Place(3, "norm"),
    Place(3, "head"),
}


def test_every_saved_tensor_has_a_known_role(family, pico, tmp_path):
    pico(family).save_pretrained(tmp_path)
    with TensorReader.open(tmp_path) as reader:
        places = {name: place(name, 3) for name in reader}
    for block in range(3):
        assert {where.module for where in places.values() if where.layer == block} == IN_BLOCK[family]
    outside = {where for where in places.values() if not 0 <= where.layer < 3}
    assert {Place(-1, "embedding"), Place(3, "norm")} <= outside <= OUTSIDE


@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_every_expert_has_gate_up_and_down(family, pico, tmp_path):
    pico(family).save_pretrained(tmp_path)
    with TensorReader.open(tmp_path) as reader:
        experts = [name for name in reader if ".experts." in name and block_of(name) == 1]
    assert len(experts) == 4 * 3
    for expert in range(4):
        mine = [name for name in experts if f".experts.{expert}." in name]
        assert {place(name, 3).module for name in mine} == set(MLP)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("model.layers.7.self_attn.q_proj.weight", Place(7, "q_proj")),
        ("layers.7.block_sparse_moe.experts.3.w2.weight", Place(7, "down_proj")),
        ("layers.7.mlp.experts.gate_up_proj", Place(7, "gate_up")),
        ("layers.7.mlp.gate.weight", Place(7, "router")),
        ("h.0.attn.c_proj.weight", Place(0, "o_proj")),
        ("h.0.mlp.c_proj.weight", Place(0, "down_proj")),
        ("transformer.wpe.weight", Place(-1, "position_embedding")),
        ("transformer.ln_f.bias", Place(12, "norm")),
        ("lm_head.weight", Place(12, "head")),
        ("model.layers.7.mlp.novel.weight", Place(7, "mlp.novel")),
        ("model.layers.7.mixer.2.novel.weight", Place(7, "mixer.novel")),
        ("model.vision_tower.encoder.layers.3.self_attn.q_proj.weight", Place(12, "vision_tower")),
        ("visual.blocks.3.attn.qkv.weight", Place(12, "visual")),
        ("audio_tower.layers.0.fc1.bias", Place(12, "audio_tower")),
        ("multi_modal_projector.linear_1.weight", Place(12, "multi_modal_projector")),
        ("model.image_newline", Place(12, "image_newline")),
    ],
)
def test_names_in_the_wild(name, where):
    assert place(name, 12) == where


@pytest.mark.parametrize(
    ("family", "rows"),
    [
        ("gpt2", (32, 32, 32)),
        ("gpt_neox", (32, 32, 32)),
        ("bloom", (32, 32, 32)),
        ("phi3", (32, 16, 16)),
        ("falcon", (32, 16, 16)),
        ("falcon_7b", (32, 8, 8)),
        ("falcon_rw", (32, 32, 32)),
    ],
)
def test_fused_queries_keys_and_values_come_apart(family, rows, pico):
    model = pico(family)
    name, fused = next((name, value) for name, value in model.named_parameters() if place(name, 3).module == "qkv")
    parts = split_fused(fused.detach(), "qkv", model.config)
    assert tuple(parts) == QKV, name
    assert tuple(len(part) for part in parts.values()) == rows
    # nothing is lost and nothing is there twice
    assert torch.equal(
        torch.cat([part.flatten() for part in parts.values()]).sort().values, fused.flatten().sort().values
    )


def test_fused_parts_do_what_the_model_does(pico):
    """GPT-NeoX interleaves heads: its queries, computed from our part, are those its attention uses."""
    model = pico("gpt_neox")
    layer = model.gpt_neox.layers[0].attention
    states = torch.randn(1, 5, 32)
    fused = torch.nn.functional.linear(states, layer.query_key_value.weight)
    query, key, value = fused.view(1, 5, 4, 3 * 8).chunk(3, dim=-1)
    parts = split_fused(layer.query_key_value.weight.detach(), "qkv", model.config)
    for part, expected in zip(parts.values(), (query, key, value), strict=True):
        torch.testing.assert_close(torch.nn.functional.linear(states, part), expected.reshape(1, 5, 32))


def test_gate_and_up_come_apart_for_one_and_many_experts():
    one, many = torch.randn(6, 4), torch.randn(2, 6, 4)
    config = SimpleNamespace(intermediate_size=5, moe_intermediate_size=3)
    assert [part.shape for part in split_fused(one, "gate_up", config).values()] == [(3, 4), (3, 4)]
    parts = split_fused(many, "gate_up", config)
    assert tuple(parts) == GATE_UP
    assert torch.equal(torch.cat(list(parts.values()), dim=1), many)


def test_an_unknown_layout_stays_whole(pico):
    odd = torch.randn(7, 4)
    assert list(split_fused(odd, "qkv", pico("phi3").config)) == ["qkv"]
    assert list(split_fused(odd, "qkv", pico("gpt_neox").config)) == ["qkv"]
    assert list(split_fused(odd, "gate_up", None)) == ["gate_up"]
    sideways = torch.randn(2, 32, 96)  # experts x in x out
    assert list(split_fused(sideways, "gate_up", pico("phi3").config)) == ["gate_up"]
    assert split_fused(odd, "q_proj", None)["q_proj"] is odd


@pytest.mark.parametrize("family", ["phi3", "mixtral", "olmoe"])
def test_a_familys_fused_gate_and_up_come_apart(family, pico):
    model = pico(family)
    fused = [value for name, value in model.named_parameters() if place(name, 3).module == "gate_up"]
    assert len(fused) == 3
    assert all(tuple(split_fused(value.detach(), "gate_up", model.config)) == GATE_UP for value in fused)


def test_a_towers_numbers_are_no_blocks():
    assert block_of("model.vision_tower.encoder.layers.3.fc1.weight") is None
    assert block_of("model.language_model.layers.3.mlp.image_gate.weight") == 3
