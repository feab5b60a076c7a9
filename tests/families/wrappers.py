"""Multimodal checkpoints at pico size: a text decoder of a family in `zoo`, nested beside towers for pictures."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from .zoo import GEMMA4, SLIDING, filled, sizes

IDS = {"image_token_id": 310, "video_token_id": 311, "vision_start_token_id": 312, "vision_end_token_id": 313}
INDICES = {"image_token_index": 310, "boi_token_index": 311, "eoi_token_index": 312}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN = {"hidden_size": 16, "intermediate_size": 16, "depth": 2, "num_heads": 2, "out_hidden_size": 32}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}

# Family of the whole, family of its text decoder, fields of that, fields of the whole.
WRAPPERS: Mapping[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {
    "gemma3": ("gemma3_text", {}, {"vision_config": TOWER, "mm_tokens_per_image": 1, **INDICES}),
    "gemma4": (
        "gemma4_text",
        GEMMA4,
        {
            "vision_config": {**TOWER, "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 16},
            "audio_config": None,
            "image_token_id": 310,
            "video_token_id": 313,
            "audio_token_id": 314,
            "boi_token_id": 311,
            "eoi_token_id": 312,
            "boa_token_id": 315,
            "eoa_token_index": 316,
        },
    ),
    "llama4": (
        "llama4_text",
        {},
        {
            "vision_config": {
                **TOWER,
                "vision_output_dim": 16,
                "projector_input_dim": 16,
                "projector_output_dim": 16,
                "intermediate_size": 64,
            },
            **INDICES,
        },
    ),
    "llava": ("llama", {}, {"vision_config": {"model_type": "clip_vision_model", **TOWER}, "image_token_index": 310}),
    "mistral3": (
        "mistral",
        {},
        {
            "vision_config": {"model_type": "pixtral", **TOWER, "head_dim": 8},
            "image_token_index": 310,
            "spatial_merge_size": 1,
        },
    ),
    "qwen2_5_vl": ("qwen2_5_vl_text", ROPE, {"vision_config": {**QWEN, "fullatt_block_indexes": [1]}, **IDS}),
    "qwen3_vl": (
        "qwen3_vl_text",
        ROPE,
        {"vision_config": {**QWEN, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}, **IDS},
    ),
    "qwen3_5": ("qwen3_5_text", {}, {"vision_config": {**QWEN, "num_position_embeddings": 16}, **IDS}),
}


def make_wrapper(kind: str) -> nn.Module:
    """A multimodal model in float32, filled."""
    text, inside, outside = WRAPPERS[kind]
    nested = {"model_type": text, **sizes(text, **inside)}
    config = CONFIG_MAPPING[kind](text_config=nested, **outside)
    torch.manual_seed(0)
    return filled(AutoModelForImageTextToText.from_config(config, dtype=torch.float32))
