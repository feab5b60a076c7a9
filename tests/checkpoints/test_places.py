"""Role, part and layer of the parameters of unlike families, each as its modelling code uses them."""

import pytest
import torch
import transformers

from midblock.checkpoints import Anatomy

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MAMBA = {"vocab_size": 64, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "pad_token_id": 0}
SSM = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16}
LINEAR = {
    "head_dim": 8, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "first_k_dense_replace": 1,
}  # fmt: skip
GEMMA = {"head_dim": 8, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8, "sliding_window": 8}
STREAMS = {
    "num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 3, "activation_sparsity_pattern": [0.0] * 2,
}  # fmt: skip

# family, what differs from SMALL, end of a parameter's name, (layer, role, part)
PLACES = [
    # an out_proj is attention's only in softmax attention
    ("lfm2", {"layer_types": ["conv", "full_attention"]}, "0.conv.out_proj.weight", (0, "conv.out_proj", "other")),
    ("lfm2", {"layer_types": ["conv", "full_attention"]}, "1.self_attn.out_proj.weight", (1, "o_proj", "attention")),
    ("lfm2", {"layer_types": ["conv", "full_attention"]}, "1.feed_forward.w1.weight", (1, "gate_proj", "mlp")),
    ("falcon_h1", {**SSM, "mamba_d_ssm": 64, "head_dim": 8}, "0.mamba.out_proj.weight", (0, "mamba.out_proj", "other")),
    ("falcon_h1", {**SSM, "mamba_d_ssm": 64, "head_dim": 8}, "0.self_attn.o_proj.weight", (0, "o_proj", "attention")),
    ("qwen3_5_text", LINEAR, "0.linear_attn.out_proj.weight", (0, "linear_attn.out_proj", "attention")),
    ("qwen3_5_text", LINEAR, "0.linear_attn.in_proj_qkv.weight", (0, "linear_attn.in_proj_qkv", "attention")),
    ("qwen3_5_text", LINEAR, "1.self_attn.q_proj.weight", (1, "q_proj", "attention")),
    (
        "minimax",
        {"head_dim": 8, "num_local_experts": 4, "layer_types": ["linear_attention", "full_attention"]},
        "0.self_attn.qkv_proj.weight",
        (0, "self_attn.qkv_proj", "attention"),
    ),
    # latent attention
    ("deepseek_v3", LATENT, "1.self_attn.kv_b_proj.weight", (1, "self_attn.kv_b_proj", "attention")),
    ("deepseek_v3", LATENT, "1.mlp.gate.weight", (1, "router", "router")),
    ("deepseek_v3", LATENT, "1.mlp.shared_experts.gate_proj.weight", (1, "gate_proj", "mlp")),
    ("deepseek_v3", LATENT, "1.self_attn.kv_a_layernorm.weight", (1, "norm", "norm")),
    # gates: of attention, of routers, of inputs
    (
        "afmoe",
        {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        "0.self_attn.gate_proj.weight",
        (0, "self_attn.gate_proj", "attention"),
    ),
    ("zaya", {"num_experts_per_tok": 1}, "0.mlp.gate.router_mlp.out_proj.weight", (0, None, "router")),
    ("gemma4_text", GEMMA, "0.per_layer_input_gate.weight", (0, "per_layer_input_gate", "other")),
    ("qwen2_moe", {"num_experts": 4, "num_experts_per_tok": 2}, "0.mlp.shared_expert_gate.weight", (0, None, "router")),
    # before the blocks and behind them
    ("gemma4_text", GEMMA, "embed_tokens_per_layer.weight", (-1, "embed_tokens_per_layer", "embedding")),
    ("gemma4_text", GEMMA, "per_layer_model_projection.weight", (-1, "per_layer_model_projection", "other")),
    ("gemma3n_text", {**GEMMA, **STREAMS}, "altup_projections.0.weight", (-1, "altup_projections", "other")),
    ("gemma3n_text", {**GEMMA, **STREAMS}, "altup_unembed_projections.0.weight", (2, None, "other")),
    ("lfm2", {"layer_types": ["conv", "full_attention"]}, "embedding_norm.weight", (2, "norm", "norm")),
    ("bloom", {}, "word_embeddings_layernorm.weight", (-1, "norm", "norm")),
    ("gpt2", {}, "wpe.weight", (-1, "position_embedding", "position_embedding")),
]


def build(kind, fields):
    config = transformers.CONFIG_MAPPING[kind]
    given = MAMBA if kind in ("mamba", "mamba2") else SMALL
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config(**{**given, **fields}))


@pytest.mark.parametrize(("kind", "fields", "ending", "expected"), PLACES, ids=lambda each: str(each)[:40])
def test_where_a_parameter_sits_and_what_it_does(kind, fields, ending, expected):
    found = Anatomy.of(build(kind, fields)).projections
    (where,) = [each for name, each in found.items() if name.endswith(f".{ending}")]
    layer, role, part = expected
    assert (where.layer, where.part) == (layer, part)
    assert where.block == (layer if 0 <= layer < 2 else None)
    assert where.role == (role or where.role)


def test_a_mamba_has_no_attention_and_its_embedding_stands_before_its_blocks():
    found = Anatomy.of(build("mamba", {"time_step_rank": 4})).projections
    assert {each.part for each in found.values() if each.block is not None} == {"other", "norm", "bias"}
    assert (found["backbone.embeddings.weight"].layer, found["backbone.embeddings.weight"].role) == (-1, "embedding")


def test_only_experts_are_stacks():
    moe = Anatomy.of(build("qwen2_moe", {"num_experts": 4, "num_experts_per_tok": 2})).projections
    assert {where.role for where in moe.values() if where.stacked} == {"gate_up", "down_proj"}
    assert all(len(where.shape) == 3 for where in moe.values() if where.stacked)
    hybrid = Anatomy.of(build("qwen3_5_text", LINEAR)).projections
    assert any(len(where.shape) == 3 for where in hybrid.values())  # a convolution's
    assert not any(where.stacked for where in hybrid.values())
