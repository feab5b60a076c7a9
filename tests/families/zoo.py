"""Every decoder family that transformers' AutoModelForCausalLM knows, at pico size: some ten thousand weights each.

The families come from transformers itself, so a new one joins with the next version. `SMALL` gives the sizes, as far as
a family's config has such a field; `EXTRAS` what one family needs beside them. A hybrid has blocks of both kinds, and
every scale and cap is far from 1: one that is lost must show. `OTHERS` are variants of a family whose blocks are wired
differently. `NO_DECODERS` says why the rest is left out.
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

from .extras import EXTRAS
from .small import SMALL

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
    "reformer": "runs its blocks backwards in two streams, on texts of certain lengths",
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
