"""Shared by all tests: shape checking of the whole package, pico models of every family, a real small tokenizer."""

import gc
import os
from collections.abc import Callable, Iterator

from .checking import install

# before anything of midblock is imported; the larger mode of tests/fuzz meets the code as users do
if "MIDBLOCK_FUZZ" not in os.environ:
    install("midblock")

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

VOCABULARY, WIDTH, BLOCKS = 300, 32, 3
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    **SPECIAL,
}
FALCON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    **SPECIAL,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": BLOCKS, "n_head": 4, "n_positions": 256, **SPECIAL}

FAMILIES = {
    "llama": ("LlamaConfig", LLAMA_LIKE),
    "llama_tied": ("LlamaConfig", {**LLAMA_LIKE, "tie_word_embeddings": True}),
    "olmo2": ("Olmo2Config", LLAMA_LIKE),
    "qwen2": ("Qwen2Config", LLAMA_LIKE),
    "qwen3": ("Qwen3Config", {**LLAMA_LIKE, "head_dim": 8}),
    "mistral": ("MistralConfig", LLAMA_LIKE),
    "gemma2": ("Gemma2Config", {**LLAMA_LIKE, "head_dim": 8}),
    "gemma3": ("Gemma3TextConfig", {**LLAMA_LIKE, "head_dim": 8}),
    "phi3": ("Phi3Config", LLAMA_LIKE),
    "gpt2": ("GPT2Config", GPT2),
    "gpt_neox": ("GPTNeoXConfig", {key: value for key, value in LLAMA_LIKE.items() if key != "num_key_value_heads"}),
    "falcon": ("FalconConfig", {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "falcon_7b": ("FalconConfig", {**FALCON, "multi_query": True}),
    "falcon_rw": ("FalconConfig", {**FALCON, "multi_query": False, "alibi": True}),
    "mixtral": ("MixtralConfig", {**LLAMA_LIKE, "num_local_experts": 4}),
    "olmoe": ("OlmoeConfig", {**LLAMA_LIKE, "num_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**LLAMA_LIKE, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    # Not promised, but other decoders work too.
    "bloom": ("BloomConfig", {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": BLOCKS, "n_head": 4}),
    "opt": (
        "OPTConfig",
        {
            **FALCON,
            "ffn_dim": 48,
            "word_embed_proj_dim": WIDTH,
            "max_position_embeddings": 256,
        },
    ),
    "granite": ("GraniteConfig", {**LLAMA_LIKE, "logits_scaling": 2.0}),
    "cohere": ("CohereConfig", LLAMA_LIKE),
}


def make_pico(family: str, seed: int = 0, **changes: object) -> nn.Module:
    """A real model of the family, a few thousand weights, in float32 and evaluation mode."""
    name, settings = FAMILIES[family]
    config = getattr(transformers, name)(**{**settings, **changes})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # The usual initialisation is so small that attention is flat and every layer looks alike.
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return model


VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip
QWEN_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
# a multimodal model: its config, that of its text model, the vision tower's, and the class of the text model alone
WRAPPERS = {
    "gemma3": ("Gemma3", {**LLAMA_LIKE, "head_dim": 8}, {**VISION}, "Gemma3Text"),
    "mistral3": ("Mistral3", {**LLAMA_LIKE, "model_type": "mistral", "head_dim": 8},
                 {**VISION, "model_type": "pixtral"}, "Mistral"),
    "qwen2_5_vl": ("Qwen2_5_VL", {**LLAMA_LIKE, "rope_parameters": MROPE}, QWEN_VISION, "Qwen2"),
}  # fmt: skip


def make_wrapped(kind: str) -> tuple[nn.Module, nn.Module]:
    """A multimodal model, and its decoder as a language model alone, with the same weights."""
    name, text, vision, alone = WRAPPERS[kind]
    tied = {"tie_word_embeddings": False}
    settings = {"text_config": {**text, **tied}, "vision_config": vision, "mm_tokens_per_image": 1, **tied}
    config = getattr(transformers, f"{name}Config")(**settings)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    plain = {key: value for key, value in text.items() if key not in ("model_type", "rope_parameters")}
    decoder = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{alone}Config")(**plain, **tied))
    decoder.model.load_state_dict(model.model.language_model.state_dict())
    decoder.lm_head.load_state_dict(model.lm_head.state_dict())
    return model, decoder.eval()


def make_tuned(base: nn.Module, amount: float = 0.05, seed: int = 1) -> nn.Module:
    """A copy of `base` whose weights all moved a little."""
    import copy

    tuned = copy.deepcopy(base)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(amount * parameter.std().nan_to_num(1.0).clamp(min=0.1) * torch.randn_like(parameter))
    return tuned


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained here, that encodes any text with ids below `VOCABULARY`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["How many apples does she have in the end? She has 3 + 4 = 7 apples."], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
    )


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Matrices this small lose time to threads where other work shares the cores; losses must not depend on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def only_new_garbage() -> None:
    """The trainer collects garbage, which takes long among a whole session's objects: look at a file's own only."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def pico() -> Callable[..., nn.Module]:
    return make_pico


@pytest.fixture(scope="session")
def tuned_from() -> Callable[..., nn.Module]:
    return make_tuned


@pytest.fixture(scope="session")
def wrapped() -> Callable[[str], tuple[nn.Module, nn.Module]]:
    return make_wrapped
