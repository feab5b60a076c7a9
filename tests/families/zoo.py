"""Every decoder family that transformers' AutoModelForCausalLM knows, at pico size: some ten thousand weights each.

The families come from transformers itself, so a new one joins with the next version. `SMALL` gives the sizes, as far as
a family's config has such a field; `EXTRAS` what one family needs beside them, so that a hybrid has blocks of both
kinds, experts are few, and every scale and cap is far from 1 (a scale that is lost must show). `OTHERS` are variants
of a family whose blocks are wired differently. `NO_DECODERS` says why the rest is left out.
"""

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 320
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
LINEAR = ["linear_attention", "full_attention", "linear_attention"]
INDEXED = ["indexed_attention", "full_attention", "indexed_attention"]
SPARSE = ["dense", "sparse", "sparse"]

SMALL: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "lru_width"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 256),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "decoder_ffn_dim": 48,
    "encoder_layers": 3,
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 4,
    "is_decoder": True,
    "sliding_window": 8,
    # experts
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 24),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("router_jitter_noise", "input_jitter_noise"), 0.0),
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "mlp_layer_types": SPARSE,
    # latent and indexed attention
    "kv_lora_rank": 8,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "index_topk": 4,
    "index_head_dim": 8,
    "index_n_heads": 16,  # few heads would score many tokens exactly 0, and equal scores are chosen by chance
    # state-space and linear attention
    "mamba_d_ssm": 64,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
    "state_size": 8,
    "time_step_rank": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    # scales and caps that matter
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.3,
    "logits_scaling": 0.25,
    "logit_scale": 0.25,
    "final_logit_softcapping": 2.0,
    "logits_soft_cap": 2.0,
    "output_logit_soft_cap": 2.0,
    "attn_logit_softcapping": 5.0,
    "query_pre_attn_scalar": 8,
}

GEMMA4 = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "global_head_dim": 16,
}
HEADS_ALIKE = {"num_key_value_heads": 4}

EXTRAS: Mapping[str, Mapping[str, Any]] = {
    "afmoe": {"layer_types": SLIDING, "mup_enabled": True},
    "axk1": HEADS_ALIKE,
    "axk2": {**HEADS_ALIKE, "gated_norm_rank": 8},
    "bailing_hybrid": {**HEADS_ALIKE, "layer_types": LINEAR, "mlp_layer_types": SPARSE, "num_mtp_layers": 1},
    "bamba": {"attn_layer_indices": [1]},
    "beam": {"layer_types": SLIDING},
    "codegen": {"rotary_dim": 4},
    "cohere2": {"layer_types": SLIDING},
    "cohere_compass_text": {
        "layer_types": SLIDING,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]} for kind in set(SLIDING)
        },
    },
    "cohere2_moe": {"layer_types": SLIDING, "prefix_dense_intermediate_size": 48},
    "cpmant": {"dim_head": 8, "dim_ff": 48, "prompt_length": 4, "prompt_types": 4, "segment_types": 4},
    "ctrl": {"dff": 48},
    "cwm": {"layer_types": SLIDING},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": HEADS_ALIKE,
    "deepseek_v3": HEADS_ALIKE,
    "deepseek_v32": HEADS_ALIKE,
    "deepseek_v4": {
        "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "mlp_layer_types": ["hash_moe", "moe", "moe"],
        "num_key_value_heads": 1,
        "o_groups": 2,
        "o_lora_rank": 8,
        "hc_mult": 2,
    },
    "doge": {"keep_window_size": 8},
    "dots1": {"layer_types": SLIDING},
    "dots3_note_text": {
        **HEADS_ALIKE,
        "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"],
        "shared_experts_intermediate_size": 24,
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 2,
        "swa_q_lora_rank": 12,
        "swa_kv_lora_rank": 8,
        "swa_head_dim": 12,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "exaone4": {"layer_types": SLIDING},
    "exaone_moe": {"layer_types": SLIDING},
    "falcon_h1": {
        "lm_head_multiplier": 0.05,
        "mlp_multipliers": [0.5, 2.0],
        "ssm_multipliers": [0.5, 2.0, 0.7, 1.5, 0.6],
        "key_multiplier": 0.5,
        "attention_in_multiplier": 1.5,
        "attention_out_multiplier": 0.7,
        "ssm_in_multiplier": 1.5,
        "ssm_out_multiplier": 0.7,
    },
    "flint": {"layer_types": SLIDING, "mlp_only_layers": [0]},
    "gemma2": {"layer_types": SLIDING},
    "gemma3_text": {"layer_types": SLIDING},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": GEMMA4["layer_types"],
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "altup_num_inputs": 3,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
    },
    "gemma4_text": {**GEMMA4, "use_double_wide_mlp": True, "num_experts": None},
    "gemma4_unified_text": {**GEMMA4, "use_double_wide_mlp": True},
    "glm4_moe_lite": HEADS_ALIKE,
    "glm_moe_dsa": HEADS_ALIKE,
    "glm4_moe": {"num_mtp_layers": 1, "use_qk_norm": True},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "window_size": 8},
    "gpt_oss": {"layer_types": SLIDING},
    "gptj": {"rotary_dim": 4},
    "granite_swa": {"layer_types": SLIDING},
    "granitemoe_swa": {"layer_types": SLIDING},
    "granitemoehybrid": {"layer_types": LINEAR, "mamba_n_heads": 8},
    "hrm_text": {"num_layers_per_stack": 1},
    "inkling_text": {
        "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 1,
        "swa_head_dim": 16,
        "sliding_window_size": 8,
        "d_rel": 4,
        "rel_extent": 16,
        "unpadded_vocab_size": 300,
    },
    "inkling2_text": {
        "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 1,
        "swa_head_dim": 16,
        "sliding_window_size": 8,
        "d_rel": 4,
        "rel_extent": 16,
        "n_layers_per_attn_res_block": 2,
        "unpadded_vocab_size": 300,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "jetmoe": {"kv_channels": 8},
    "kimi_linear": {**HEADS_ALIKE, "layer_types": LINEAR},
    "kolibri1": {"layer_types": SLIDING},
    "laguna": {"layer_types": SLIDING, "moe_router_logit_softcapping": 2.0},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "sliding_attention", "full_attention"]},
    "llama4_text": {
        "layer_types": ["chunked_attention", "full_attention", "chunked_attention"],
        "no_rope_layers": [1, 0, 1],
        "attention_chunk_size": 8,
        "moe_layers": [1],
        "intermediate_size_mlp": 40,
        "num_experts_per_tok": 1,
    },
    "longcat_flash": {
        "num_layers": 2,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 24,
        "zero_expert_num": 2,
        "head_dim": 4,
        **HEADS_ALIKE,
    },
    "mamba2": {"num_heads": 8, "n_groups": 2, "chunk_size": 16},
    "mellum": {"layer_types": SLIDING, "num_mtp_layers": 1},
    "mimo_v2_flash": {"layer_types": SLIDING},
    "minicpm3": {"dim_model_base": 8, "scale_emb": 2, "scale_depth": 0.7, **HEADS_ALIKE},
    "minimax": {
        "layer_types": LINEAR,
        "block_size": 16,
        "full_attn_alpha_factor": 1.5,
        "linear_attn_alpha_factor": 0.7,
        "mlp_alpha_factor": 0.8,
        "mlp_beta_factor": 1.3,
    },
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
        "dense_intermediate_size": 48,
        "rotary_dim": 4,
        "index_block_size": 4,
        "index_n_heads": 4,
        "index_topk_blocks": 2,
    },
    "ministral": {"layer_types": SLIDING},
    "modernbert-decoder": {"layer_types": SLIDING, "local_attention": 8},
    "mpt": {"attn_config": {"alibi": True}},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "num_hidden_layers": 4,
        "ssm_state_size": 8,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "chunk_size": 16,
        "moe_shared_expert_intermediate_size": 24,
        "num_nextn_predict_layers": 1,
    },
    "olmo": {"clip_qkv": 0.5},
    "olmo3": {"layer_types": SLIDING},
    "olmo_hybrid": {"layer_types": LINEAR},
    "phi": {"qk_layernorm": True},
    "phimoe": {"lm_head_bias": True},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 1, "mlp_only_layers": [0]},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3_5_moe_text": {"layer_types": LINEAR},
    "qwen3_5_text": {"layer_types": LINEAR},
    "qwen3_moe": {"mlp_only_layers": [0]},
    "qwen3_next": {"layer_types": LINEAR, "mlp_only_layers": [0]},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
        "hc_count": 2,
        "hc_lowrank": 8,
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {
        "num_key_value_heads": 1,
        "attention_window_size": 8,
        "block_types": ["recurrent", "attention"],
    },
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 24},
    "reformer": {
        "attention_head_size": 8,
        "attn_layers": ["local", "local", "local"],
        "axial_pos_embds": False,
        "feed_forward_size": 48,
        "local_attn_chunk_length": 8,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": 16,
        "shape_embed_dim": 8,
        "shape_vocab_size": 16,
    },
    "rwkv": {"attention_hidden_size": 32, "context_length": 256},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "stablelm": {"use_qkv_bias": True, "qk_layernorm": True},
    "trocr": {"cross_attention_hidden_size": 16},
    "vaultgemma": {"layer_types": SLIDING},
    "xlm": {"emb_dim": 32, "causal": True},
    "xlstm": {"chunk_size": 16},
    "xmod": {"languages": ("en_XX",), "default_language": "en_XX"},
    "youtu": HEADS_ALIKE,
    "xlnet": {"attn_type": "uni", "d_inner": 48},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_key_value_heads": 4,
        "mamba_dt_rank": 4,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_mem_blocks": 1,
        "adapter_rank": 4,
        "chunk_size": 16,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}

OTHERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bloom:residual-after-norm": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "cohere:qk-norm": ("cohere", {"use_qk_norm": True}),
    "deepseek_v3:whole-queries": ("deepseek_v3", {"q_lora_rank": None}),
    "falcon:40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon:rw": ("falcon", {"multi_query": False, "alibi": True, "bias": True, "parallel_attn": False}),
    "gemma4_text:experts": (
        "gemma4_text",
        {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
    ),
    "gemma4_text:keys-as-values": ("gemma4_text", {"attention_k_eq_v": True, "num_global_key_value_heads": 1}),
    "gpt_neox:sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "granitemoehybrid:dense": ("granitemoehybrid", {"num_local_experts": 0}),
    "jamba:dense": ("jamba", {"num_experts": 1}),
    "llama:biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama:tied": ("llama", {"tie_word_embeddings": True}),
    "mamba:untied": ("mamba", {"tie_word_embeddings": False}),
    "nemotron_h:latent-experts": ("nemotron_h", {"moe_latent_size": 16}),
    "opt:350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "stablelm:parallel": ("stablelm", {"use_parallel_residual": True}),
    "zamba2:two-shared-blocks": (
        "zamba2",
        {
            "num_hidden_layers": 5,
            "layers_block_type": ["linear_attention", "hybrid", "hybrid", "hybrid", "hybrid"],
            "num_mem_blocks": 2,
        },
    ),
}

NO_DECODERS: Mapping[str, str] = {
    "blt": "reads bytes in patches, with two decoders around a third",
    "cpmant": "attends to later tokens, and reads prompts of its own before the text",
    "gemma4_assistant": "drafts from the states of another model",
    "gemma4_unified_assistant": "drafts from the states of another model",
    "musicgen": "predicts audio codes",
    "musicgen_melody": "predicts audio codes",
    "prophetnet": "predicts several tokens ahead, each in a stream of its own",
}


def families() -> list[str]:
    """Every family to try: those of transformers that are decoders of text, and the variants of them."""
    known = [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in NO_DECODERS and not nested(kind)]
    return sorted([*known, *(name for name, (kind, _) in OTHERS.items() if kind in known)])


def nested(kind: str) -> bool:
    """Whether a family's text model is part of a larger one; test_multimodal.py has those."""
    return any("text" in name or "vision" in name for name in CONFIG_MAPPING[kind].sub_configs)


def sizes(kind: str, **changes: Any) -> dict[str, Any]:
    """The fields of a family's pico config."""
    family, others = OTHERS.get(kind, (kind, {}))
    known = set(inspect.signature(CONFIG_MAPPING[family].__init__).parameters)
    dropped = {name: 0.0 for name in known if "drop" in name}
    small = {name: value for name, value in {**SMALL, **dropped}.items() if name in known}
    return {**small, **EXTRAS.get(family, {}), **others, **changes}


def make(kind: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A model of a family in float32, filled."""
    config = CONFIG_MAPPING[OTHERS.get(kind, (kind, {}))[0]](**sizes(kind, **changes))
    torch.manual_seed(seed)
    return filled(AutoModelForCausalLM.from_config(config, dtype=torch.float32), seed)


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights on which every path of the model matters: no norm is 1, no bias and no gate 0."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            drawn = torch.randn(weight.shape, generator=stream)
            if weight.ndim >= 2:
                weight.copy_(drawn / math.sqrt(weight.shape[-1]))
            else:
                weight.add_(0.1 * drawn)
    return model.float().eval()


def changed(model: nn.Module, share: float = 0.1, moves: Callable[[str], bool] = lambda name: True) -> nn.Module:
    """A copy whose weights, those that `moves` says yes to, moved by `share` of the spread they had."""
    tuned, stream = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (value for name, value in tuned.named_parameters() if moves(name)):
            spread = float(weight.std()) if weight.numel() > 1 else 0.0
            weight.add_(share * (spread or 0.1) * torch.randn(weight.shape, generator=stream))
    return tuned
