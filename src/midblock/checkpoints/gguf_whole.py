"""Whether transformers makes of a GGUF file all that it says: every tensor read, every setting that of its model.

Its loader drops what its tables lack (scaled rotary frequencies, biases, a base of the frequencies) without a word, and
the model is then another. So every tensor needs a parameter, and every key of the architecture is held against the
model itself; what is neither equal nor known not to matter is refused by name. Cost: a skeleton, no weights. Source:
transformers' own tables (`modeling_gguf_pytorch_utils`, `integrations.gguf`).
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from midblock.base import MidblockError
from midblock.base.quoting import printable

HINT = "give the model's own safetensors instead"
SCALING = "rope.scaling."
DIVISORS = "rope_freqs.weight"
LLAMA3 = {
    "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192
}  # fmt: skip

# what cannot change what a model computes: sizes that the shapes of its tensors settle, and notes on how it was made
FREE = (
    "context_length", "vocab_size", "block_count", "embedding_length", "feed_forward_length",
    "expert_feed_forward_length", "expert_shared_feed_forward_length", "tensor_data_layout", "rope.scaling.finetuned",
    "decoder_start_token_id",
)  # fmt: skip

# what is off at zero, and then need not be known to the model
OFF = (
    "expert_count", "expert_used_count", "expert_shared_count", "expert_group_count", "expert_group_used_count",
    "leading_dense_block_count", "nextn_predict_layers", "attention.sliding_window", "attention.clamp_kqv",
    "attention.max_alibi_bias", "attention.scale", "logit_scale", "residual_scale", "embedding_scale",
)  # fmt: skip

EPSILONS = ("rms_norm_eps", "norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
GATES = {"softmax": 1, "sigmoid": 2}  # of experts, as GGUF counts them

# GGUF's names of scalings to those in `rope_parameters`
SCALINGS = {
    "type": "rope_type", "factor": "factor", "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow",
}  # fmt: skip


def rotation_of(reader: Any, config: Any) -> dict[str, Any] | None:
    """The scaling of positions that a file's `rope_freqs.weight` is; None where it has none, or of another kind.

    llama.cpp keeps of Llama 3.1 to 3.3 just what each frequency is divided by. Those have one scaling but for its
    factor, so it is computed from the factor and must give the file's divisors.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = getattr(config, "rope_parameters", None) or {}
    found = next((each for each in reader.tensors if each.name == DIVISORS), None)
    if found is None or config.model_type != "llama" or rope.get("rope_type") != "default" or _divides_by_one(found):
        return None
    divisors = torch.from_numpy(np.array(found.data)).float()
    scaled = copy.deepcopy(config)
    scaled.rope_parameters = {**rope, **LLAMA3, "factor": float(divisors.max())}
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, torch.device("cpu"))
    width = 2 * len(frequencies)
    plain = 1 / rope["rope_theta"] ** (torch.arange(0, width, 2).float() / width)
    same = divisors.shape == plain.shape and torch.allclose(plain / divisors, frequencies, rtol=1e-5, atol=0)
    return dict(scaled.rope_parameters) if same else None


def check_whole(file: Path, reader: Any, config: Any, skeleton: nn.Module) -> None:
    """Do nothing if a model that transformers builds of a GGUF file computes what the file says.

    Args:
        reader: gguf's, of the file.
        config: what transformers makes of the file's keys.
        skeleton: the model of this config, without weights.

    Raises:
        MidblockError: a tensor has no parameter, or a key is not that of the model; it is named.
    """
    architecture = str(reader.fields["general.architecture"].contents())
    _check_tensors(file, reader, architecture, skeleton)
    prefix = f"{architecture}."
    settings = {
        key.removeprefix(prefix): field.contents() for key, field in reader.fields.items() if key.startswith(prefix)
    }
    names, followed = _names(architecture, config), _followed(file, architecture)
    scaling = {key: value for key, value in settings.items() if key.startswith(SCALING) or key == "rope.scale_linear"}
    for key, value in settings.items():
        if key in FREE or key in followed or key in scaling:
            continue
        meant = _meant(key, names.get(key), config, skeleton)
        if not any(_same(value, each) for each in meant) and not (key in OFF and not meant and not value):
            raise _refused(file, f"{prefix}{key}", value, meant)
    _check_scaling(file, prefix, scaling, _rope(config))


def _check_tensors(file: Path, reader: Any, architecture: str, skeleton: nn.Module) -> None:
    if _has_own_plan(architecture):
        return  # transformers then says itself what it did not read
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config={})
    known = get_gguf_hf_weights_map(skeleton, processor)
    # stacked experts are known without their ending
    lost = [each for each in reader.tensors if not {each.name, each.name.removesuffix(".weight")} & known.keys()]
    scaled = _rope(skeleton.config).get("rope_type") == LLAMA3["rope_type"]
    check_read(file, [each.name for each in lost if not (_divides_by_one(each) or (scaled and each.name == DIVISORS))])


def check_read(file: Path, lost: Sequence[str]) -> None:
    """Do nothing if no tensor of a file was left out.

    Raises:
        MidblockError: some were; the first is named.
    """
    if lost:
        what = f"cannot convert {file}: transformers does not read its tensor {printable(lost[0])}"
        raise MidblockError(f"{what} ({len(lost)} unread in all)", hint=f"the model would be another: {HINT}")


def _divides_by_one(tensor: Any) -> bool:
    """Whether a tensor divides each rotary frequency by one."""
    return tensor.name == DIVISORS and tensor.tensor_type.name == "F32" and bool((tensor.data == 1).all())


def _has_own_plan(architecture: str) -> bool:
    """Whether transformers reads it in the way of its newer versions: by a plan for the architecture."""
    try:
        from transformers.integrations.gguf import is_gguf_arch_supported
    except ImportError:
        return False
    return bool(is_gguf_arch_supported(architecture))


def _names(architecture: str, config: Any) -> Mapping[str, str | None]:
    """What transformers' table calls the architecture's keys in its config."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

    table: Any = GGUF_TO_TRANSFORMERS_MAPPING["config"]
    return table.get(str(config.model_type).removesuffix("_text")) or table.get(architecture, {})


def _followed(file: Path, architecture: str) -> set[str]:
    """The keys that a function of transformers' makes the config of, where it has one for the architecture."""
    try:
        from transformers.integrations.gguf import GGUF_CONFIG_ARCHS, read_gguf_metadata
    except ImportError:
        return set()
    if architecture not in GGUF_CONFIG_ARCHS:
        return set()
    metadata, names = read_gguf_metadata(str(file))
    watched: Any = _Watched(metadata)
    GGUF_CONFIG_ARCHS[architecture](watched, names)
    return {key.removeprefix(f"{architecture}.") for key in watched.read}


class _Watched(Mapping[str, Any]):
    """A mapping that notes which of its keys are read."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content, self.read = content, set[str]()

    def __getitem__(self, key: str) -> Any:
        value = self.content[key]
        self.read.add(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)


def _meant(key: str, name: str | None, config: Any, skeleton: nn.Module) -> list[Any]:
    """The values that the model has for a key: one that the file may say."""
    if key in MEANINGS:
        return MEANINGS[key](config, skeleton)
    return _stated(config, name or key)


def _stated(config: Any, *names: str) -> list[Any]:
    """A config's values of these names, of those that its class knows: it keeps strangers too, and does nothing."""
    known = {*inspect.signature(type(config)).parameters, *getattr(config, "attribute_map", {})}
    return [getattr(config, name) for name in names if name in known and hasattr(config, name)]


def _width(config: Any, *names: str) -> list[Any]:
    """Of one head: as stated, else the hidden state's share."""
    stated = [value for value in _stated(config, *names) if value is not None]
    return stated or [config.hidden_size // config.num_attention_heads]


def _rotary(skeleton: nn.Module) -> list[Any]:
    """How many values of a head are turned."""
    return [2 * value.shape[-1] for name, value in skeleton.named_buffers() if name.endswith("inv_freq")]


def _rope(config: Any, kind: str = "full_attention") -> Mapping[str, Any]:
    """How positions are turned; of a model with several ways, in one kind of its layers."""
    found = getattr(config, "rope_parameters", None) or {}
    return found.get(kind, found) if isinstance(found.get(kind, found), Mapping) else {}


def _key_heads(config: Any) -> list[Any]:
    shared = getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False)
    return [1] if shared else _stated(config, "num_key_value_heads", "num_kv_heads")


def _pattern(config: Any) -> list[Any]:
    kinds = [kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ()]
    return [
        kinds,
        *(every for every in range(2, len(kinds)) if kinds == [(at + 1) % every != 0 for at in range(len(kinds))]),
    ]


# keys of which transformers' table says nothing, or another thing than what the model does
MEANINGS: Mapping[str, Callable[[Any, nn.Module], list[Any]]] = {
    "attention.key_length": lambda config, _: _width(config, "head_dim", "global_head_dim"),
    "attention.value_length": lambda config, _: _width(config, "head_dim", "global_head_dim"),
    "attention.key_length_swa": lambda config, _: _width(config, "head_dim"),
    "attention.value_length_swa": lambda config, _: _width(config, "head_dim"),
    "attention.head_count_kv": lambda config, _: _key_heads(config),
    "attention.layer_norm_epsilon": lambda config, _: _stated(config, *EPSILONS),
    "attention.layer_norm_rms_epsilon": lambda config, _: _stated(config, *EPSILONS),
    "attention.sliding_window": lambda config, _: _stated(config, "sliding_window"),
    "attention.sliding_window_pattern": lambda config, _: _pattern(config),
    "attention.causal": lambda *_: [True],
    "rope.dimension_count": lambda _, skeleton: _rotary(skeleton),
    "rope.dimension_count_swa": lambda _, skeleton: _rotary(skeleton),
    "rope.freq_base": lambda config, _: [_rope(config).get("rope_theta")],
    "rope.freq_base_swa": lambda config, _: [_rope(config, "sliding_attention").get("rope_theta")],
    "expert_weights_norm": lambda config, _: _stated(config, "norm_topk_prob"),
    "expert_gating_func": lambda config, _: [GATES.get(each) for each in _stated(config, "scoring_func")],
}


def _same(value: Any, other: Any) -> bool:
    """Whether a value in the file is the model's: floats in the file have 32 bits."""
    if isinstance(value, list) and isinstance(other, (list, tuple)):
        return len(value) == len(other) and all(map(_same, value, other))
    if isinstance(value, list):
        return bool(value) and all(_same(each, other) for each in value)
    if isinstance(value, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(value, other, rel_tol=1e-6)
    return bool(value == other) or (other is None and value == 0)


def _check_scaling(file: Path, prefix: str, scaling: Mapping[str, Any], rope: Mapping[str, Any]) -> None:
    """Do nothing if positions are scaled as the model scales them.

    Raises:
        MidblockError: they are not; the key is named.
    """
    kind = scaling.get(f"{SCALING}type", "linear")
    factors = [scaling.get(key, 1) for key in (f"{SCALING}factor", "rope.scale_linear")]
    plain = kind == "none" or (kind == "linear" and all(factor in (0, 1) for factor in factors))
    strength = f"{SCALING}attn_factor"
    if plain and rope.get("rope_type", "default") == "default" and scaling.get(strength, 1) == 1:
        return
    for key, value in scaling.items():
        name = SCALINGS.get(key.removeprefix(SCALING), "")
        meant = [rope[name]] if name in rope else []
        if key not in FREE and not any(_same(value, each) for each in meant):
            raise _refused(file, f"{prefix}{key}", value, meant)


def _refused(file: Path, key: str, value: Any, meant: Sequence[Any]) -> MidblockError:
    has = f"has {meant[0]}" if meant else "does not know it"
    says = f"its {printable(key)} is {printable(str(value)[:100])}"
    return MidblockError(f"cannot convert {file}: {says}, the model that transformers builds {has}", hint=HINT)
