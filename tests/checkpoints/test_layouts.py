"""Layouts of fused weights, held against what the models themselves make of them."""

import pytest
import torch
import transformers
from torch.nn import functional

from midblock.checkpoints import Anatomy

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FALCON = {key: value for key, value in SMALL.items() if key not in ("num_key_value_heads", "intermediate_size")}
QKV = {
    "gpt2": {}, "phi3": {}, "gpt_neox": {}, "gpt_neox_japanese": {}, "bloom": {}, "mpt": {},
    "persimmon": {"qk_layernorm": False}, "gpt_bigcode": {},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
}  # fmt: skip
VARIANTS = {
    **{kind: (kind, fields) for kind, fields in QKV.items()},
    "gpt_bigcode_all_heads": ("gpt_bigcode", {"multi_query": False}),
    "falcon_one_key": ("falcon", {"multi_query": True}),
    "falcon_per_head": ("falcon", {"multi_query": False, "alibi": True}),
}
NAMES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "d_model": 32, "n_layers": 2, "n_heads": 4}
IDS = torch.tensor([[5, 9, 33, 7, 50, 11]])


def build(kind, fields):
    config = transformers.CONFIG_MAPPING[kind]
    given = {**FALCON, **NAMES} if kind in ("gpt2", "gpt_bigcode", "mpt", "codegen") else SMALL
    given = FALCON if kind == "falcon" else given
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(**{**given, **fields})).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape) / max(1, value.shape[-1]) ** 0.5)
    return model


def fused(model, role):
    return next((name, where) for name, where in Anatomy.of(model).projections.items() if where.role == role)


@pytest.mark.parametrize("variant", VARIANTS)
def test_keys_and_values_cut_out_of_a_fused_weight_are_those_the_model_keeps(variant):
    model = build(*VARIANTS[variant])
    name, where = fused(model, "qkv")
    entered = []
    module = model.get_submodule(name.removesuffix(".weight"))
    hook = module.register_forward_pre_hook(lambda module, args: entered.append(args[0].detach()))
    with torch.no_grad():
        cache = model(input_ids=IDS, use_cache=True).past_key_values
    hook.remove()
    parts = where.parts(model.get_parameter(name).detach())
    bias = getattr(module, "bias", None)
    biases = where.cut.parts(bias.detach()[:, None]) if bias is not None and not where.transposed else None
    if bias is not None and where.transposed:
        biases = where.cut.parts(bias.detach()[None, :])
    for role, kept in (("k_proj", cache.layers[0].keys), ("v_proj", cache.layers[0].values)):
        ours = functional.linear(entered[0], parts[role], None if biases is None else biases[role].flatten())
        theirs = kept.transpose(1, 2).flatten(2)
        if ours.shape != theirs.shape:  # falcon keeps a key once for each of the queries that share it
            ours = ours.unflatten(-1, (2, 8)).repeat_interleave(2, dim=2).flatten(2)
        if role == "v_proj":
            torch.testing.assert_close(ours, theirs)
        else:  # rotated by their positions: as long as they were, and the same at the first
            torch.testing.assert_close(ours.norm(dim=-1), theirs.norm(dim=-1))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("phi3", {}),
        ("glm", {"head_dim": 8}),
        ("glm4", {"head_dim": 8}),
        ("mixtral", {"num_local_experts": 1, "num_experts_per_tok": 1}),
        ("qwen3_moe", {"head_dim": 8, "num_experts": 1, "num_experts_per_tok": 1, "moe_intermediate_size": 24}),
    ],
)  # fmt: skip
def test_gate_and_up_cut_out_of_a_fused_weight_make_what_the_mlp_makes(kind, fields):
    model = build(kind, fields)
    found = [(name, where) for name, where in Anatomy.of(model).projections.items() if where.role == "gate_up"]
    name, where = found[0]
    path = name.removesuffix(".weight").rpartition(".")[0]
    holder = model.get_submodule(path)
    down = dict(holder.named_parameters())["down_proj.weight" if name.endswith(".weight") else "down_proj"]
    parts = where.parts(model.get_parameter(name).detach())
    x = torch.randn(5, 32)
    gate, up, down = (
        each.reshape(-1, each.shape[-1]) for each in (parts["gate_proj"], parts["up_proj"], down.detach())
    )
    ours = functional.linear(functional.silu(functional.linear(x, gate)) * functional.linear(x, up), down)
    with torch.no_grad():
        routed = (torch.zeros(5, 1, dtype=torch.long), torch.ones(5, 1)) if where.stacked else ()
        theirs = holder(x, *routed)
    torch.testing.assert_close(ours, theirs)


def test_an_order_that_is_not_known_stays_whole():
    codegen = build("codegen", {"n_ctx": 64, "rotary_dim": 4})
    name, where = fused(codegen, "qkv")
    assert where.cut is None
    assert list(where.parts(codegen.get_parameter(name))) == ["qkv"]
    sizes = {"num_local_experts": 2, "head_dim": 8}
    assert fused(build("gpt_oss", sizes), "gate_up")[1].cut is None  # gate and up alternate
