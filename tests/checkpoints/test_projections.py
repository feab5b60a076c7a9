"""Projections: every parameter's place and role from the module tree, and fused weights taken apart."""

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn

from midblock.checkpoints import ATTENTION, MLP, Anatomy, EffectiveTensors, open_checkpoint, part_of, projection_on_disk
from midblock.checkpoints.places import located
from midblock.checkpoints.projections import Cut

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
    "qwen3_moe": LLAMA | {"router"},
    "bloom": {"qkv", "o_proj", "up_proj", "down_proj", "norm", "bias"},
    "opt": {*ATTENTION, "up_proj", "down_proj", "norm", "bias"},
    "granite": LLAMA,
    "cohere": LLAMA,
}
OUTSIDE = {(-1, "embedding"), (-1, "position_embedding"), (-1, "norm"), (3, "norm"), (3, "head")}


def test_every_saved_tensor_has_a_known_role(family, pico, saved):
    with EffectiveTensors.of_checkpoint(open_checkpoint(str(saved(pico(family), "base")))) as found:
        places = {name: projection_on_disk(found, name) for name in found.on_disk}
    for block in range(3):
        assert {where.role for where in places.values() if where.block == block} == IN_BLOCK[family]
    outside = {(where.layer, where.role) for where in places.values() if where.block is None}
    assert {(-1, "embedding"), (3, "norm")} <= outside <= OUTSIDE


def test_every_parameter_has_a_projection_of_its_shape(family, pico):
    model = pico(family)
    found = Anatomy.of(model).projections
    assert list(found) == [name for name, _ in model.named_parameters()]
    for name, where in found.items():
        shape = tuple(model.get_parameter(name).shape)
        turned = (*shape[:-2], shape[-1], shape[-2]) if where.transposed else shape
        assert where.shape == turned
        assert where.transposed == (
            type(model.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D" and len(shape) == 2
        )
        if where.role in ATTENTION:
            count, width = where.heads
            assert count * width == where.shape[1 if where.role == "o_proj" else 0]


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe"])
def test_every_expert_has_gate_up_and_down(family, pico, saved):
    with EffectiveTensors.of_checkpoint(open_checkpoint(str(saved(pico(family), "base")))) as found:
        experts = [projection_on_disk(found, name) for name in found.on_disk if ".experts." in name]
    mine = [where for where in experts if where.block == 1]
    assert Counter(where.role for where in mine) == dict.fromkeys(MLP, 4)
    assert {where.part for where in mine} == {"mlp"}


def test_a_routers_weight_is_no_part_of_the_mlp(pico):
    found = Anatomy.of(pico("mixtral")).projections["model.layers.0.mlp.gate.weight"]
    assert (found.role, found.part) == ("router", "router")


def test_parts_of_latent_attention_and_shared_experts():
    config = transformers.DeepseekV3Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
        first_k_dense_replace=1,
    )  # fmt: skip
    found = Anatomy.of(transformers.AutoModelForCausalLM.from_config(config)).projections
    parts = {name.removeprefix("model.layers.1."): where.part for name, where in found.items() if where.block == 1}
    assert {part for name, part in parts.items() if "_proj" in name and "self_attn" in name} == {"attention"}
    assert {part for name, part in parts.items() if "experts." in name} == {"mlp"}
    assert parts["self_attn.kv_a_layernorm.weight"] == "norm"
    assert parts["mlp.gate.weight"] == "router"


def test_a_class_tells_what_names_do_not():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense, self.odd = nn.Linear(2, 2), nn.Linear(2, 2)

    modules = {"h.0.mixer": Attention(), "h.0.mixer.dense": nn.Linear(2, 2), "h.0.mixer.odd": nn.Linear(2, 2)}
    paths = {"blocks": "h"}
    output = located("h.0.mixer.dense.weight", (2, 2), paths, 1, modules)
    assert (output.role, output.part) == ("o_proj", "attention")
    odd = located("h.0.mixer.odd.weight", (2, 2), paths, 1, modules)
    assert (odd.role, odd.part) == ("mixer.odd", "attention")
    assert located("h.0.mixer.odd.weight", (2, 2), paths, 1).part == "other"


def test_a_bias_answers_to_its_projection_too(pico):
    found = Anatomy.of(pico("qwen2")).projections["model.layers.0.self_attn.k_proj.bias"]
    assert (found.role, found.part, found.answers) == ("bias", "bias", ("bias", "k_proj"))


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("model.layers.7.self_attn.q_proj.weight", (7, "q_proj")),
        ("layers.7.block_sparse_moe.experts.3.w2.weight", (7, "down_proj")),
        ("layers.7.mlp.experts.gate_up_proj", (7, "gate_up")),
        ("layers.7.mlp.gate.weight", (7, "router")),
        ("h.0.attn.c_proj.weight", (0, "o_proj")),
        ("h.0.mlp.c_proj.weight", (0, "down_proj")),
        ("transformer.wpe.weight", (-1, "position_embedding")),
        ("transformer.ln_f.bias", (12, "norm")),
        ("lm_head.weight", (12, "head")),
        ("model.layers.7.mlp.novel.weight", (7, "mlp.novel")),
        ("model.layers.7.mixer.2.novel.weight", (7, "mixer.novel")),
        ("model.vision_tower.encoder.layers.3.self_attn.q_proj.weight", (12, "vision_tower")),
        ("visual.blocks.3.attn.qkv.weight", (12, "visual")),
        ("audio_tower.layers.0.fc1.bias", (12, "audio_tower")),
        ("multi_modal_projector.linear_1.weight", (12, "multi_modal_projector")),
        ("model.image_newline", (12, "image_newline")),
    ],
)
def test_names_that_no_module_has(name, where):
    holder = re.match(r"(.*?)\.\d+\.", name)
    in_tower = where[0] == 12 and holder
    found = located(name, (), {"blocks": holder[1] if holder and not in_tower else "model.layers"}, 12)
    assert (found.layer, found.role) == where
    assert found.block == (where[0] if 0 <= where[0] < 12 else None)


@pytest.mark.parametrize("name", ["mtp.layers.0.mlp.up_proj.weight", "model.mtp.0.self_attn.q_proj.weight"])
def test_numbers_of_other_lists_are_no_blocks(name):
    assert located(name, (), {"blocks": "model.layers"}, 12).block is None


def by_role(model, role):
    return [(name, where) for name, where in Anatomy.of(model).projections.items() if where.role == role]


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
    name, where = by_role(model, "qkv")[0]
    fused = model.get_parameter(name).detach()
    parts = where.parts(fused)
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
    parts = by_role(model, "qkv")[0][1].parts(layer.query_key_value.weight.detach())
    for part, expected in zip(parts.values(), (query, key, value), strict=True):
        torch.testing.assert_close(torch.nn.functional.linear(states, part), expected.reshape(1, 5, 32))


def test_a_cut_knows_whose_rows_they_are():
    cut = Cut(GATE_UP, (3, 3))
    many = torch.randn(2, 6, 4)
    assert torch.equal(torch.cat(list(cut.parts(many).values()), dim=1), many)
    assert [cut.role_of(rows) for rows in ((0, 3), (3, 6), (4, 5), (2, 4))] == ["gate_proj", "up_proj", "up_proj", None]
    assert Cut(QKV, (1, 1, 1), groups=2).role_of((0, 1)) is None


def test_an_unknown_layout_stays_whole(pico):
    for family, role in (("phi3", "qkv"), ("gpt_neox", "qkv"), ("phi3", "gate_up")):
        _, where = by_role(pico(family), role)[0]
        assert where.cut is not None
        odd = torch.randn(7, 4)
        assert replace(where, cut=None).parts(odd)[role] is odd
    # of another width than the config says: nothing is certain
    config = transformers.GptOssConfig(
        vocab_size=50, hidden_size=32, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=2,
    )  # fmt: skip
    _, where = by_role(transformers.AutoModelForCausalLM.from_config(config), "gate_up")[0]
    assert where.transposed
    assert where.cut is None


@pytest.mark.parametrize("family", ["phi3", "mixtral", "olmoe", "qwen3_moe"])
def test_a_familys_fused_gate_and_up_come_apart(family, pico):
    model = pico(family)
    fused = by_role(model, "gate_up")
    assert len(fused) == 3
    assert all(tuple(where.parts(model.get_parameter(name).detach())) == GATE_UP for name, where in fused)


@pytest.mark.parametrize(
    ("role", "part"),
    [("self_attn.gate", "attention"), ("mlp.shared_expert_gate", "router"), ("ssm.in_proj", "other")],
)
def test_parts_of_roles_without_a_name_of_their_own(role, part):
    assert part_of(role) == part
