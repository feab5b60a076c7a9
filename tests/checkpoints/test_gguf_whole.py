"""What of a GGUF file transformers drops in silence is refused by name; all else is the model that was written."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from midblock.base import MidblockError
from midblock.checkpoints.gguf import gguf_folder

from .ggufs import HEADS, WIDTH, WORDS, random_model, write_gguf

IDS = torch.arange(60)[None] * 7 % len(WORDS)
EPSILON = {"rms_norm_eps": 1e-5}
STARCODER = {"norm_epsilon": 1e-5, "sliding_window": None, "tie_word_embeddings": False, "mlp_bias": True}
ONES = {"rope_freqs.weight": np.ones(WIDTH // HEADS // 2, np.float32)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIDBLOCK_CACHE", str(tmp_path / "cache"))


def scaled(kind, **fields):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **fields}}


def check_equal(file, model):
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(gguf_folder(file))(IDS).logits
        assert torch.equal(found, model(IDS).logits)


@pytest.mark.parametrize(
    ("kind", "fields", "settings", "tensors"),
    [
        ("llama", EPSILON, {}, {}),
        ("llama", EPSILON, {}, ONES),
        ("llama", EPSILON, {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {}),
        ("llama", EPSILON, {"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}, {}),
        ("llama", EPSILON, {"attention.key_length": 8, "attention.value_length": 8, "attention.causal": True}, {}),
        ("llama", EPSILON, {"expert_count": 0, "expert_used_count": 0, "attention.sliding_window": 0}, {}),
        ("llama", EPSILON | scaled("default", rope_theta=500.0), {"rope.freq_base": 500.0}, {}),
        ("qwen2", EPSILON, {}, {}),
        ("qwen3", EPSILON | {"head_dim": 128}, {"attention.key_length": 128, "rope.dimension_count": 128}, {}),
        ("starcoder2", STARCODER, {}, {}),
    ],
)
def test_a_file_that_is_read_whole_gives_the_model_that_was_written(kind, fields, settings, tensors, tmp_path):
    model = random_model(kind, **fields)
    check_equal(write_gguf(tmp_path / "x.gguf", model, kind, settings, tensors), model)


def scaled_as_llama3(**fields):
    """A Llama 3.1, and by what llama.cpp's converter has its frequencies divided."""
    usual = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    model = random_model("llama", **EPSILON, **scaled("llama3", **{**usual, **fields}))
    plain = 1 / model.config.rope_parameters["rope_theta"] ** (torch.arange(0, 8, 2) / 8)
    return model, {"rope_freqs.weight": (plain / model.model.rotary_emb.inv_freq).numpy()}


@pytest.mark.parametrize(
    ("kind", "fields", "settings", "named"),
    [
        ("llama", {"attention_bias": True}, {}, r"tensor blk\.0\.attn_q\.bias \(8 unread in all\)"),
        ("llama", {}, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, r"llama\.rope\.scaling\.type"),
        ("llama", {}, {"rope.scaling.factor": 4.0}, r"llama\.rope\.scaling\.factor is 4\.0"),
        ("llama", {}, {"rope.scaling.attn_factor": 2.0}, r"llama\.rope\.scaling\.attn_factor"),
        ("llama", {}, {"attention.key_length": 16}, r"llama\.attention\.key_length is 16, .* has 8"),
        ("llama", {}, {"attention.sliding_window": 16}, r"llama\.attention\.sliding_window"),
        ("llama", {}, {"attention.causal": False}, r"llama\.attention\.causal"),
        ("llama", {}, {"expert_count": 4}, r"llama\.expert_count"),
        ("llama", {}, {"logit_scale": 2.0}, r"llama\.logit_scale"),
        ("llama", {}, {"final_logit_softcapping": 30.0}, r"llama\.final_logit_softcapping"),
        ("llama", {}, {"a_key_of_tomorrow": "x"}, r"llama\.a_key_of_tomorrow is x"),
        ("qwen2", {}, {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, r"qwen2\.rope\.scaling\.type is yarn"),
        ("qwen2", {}, {"rope.dimension_count": 4}, r"qwen2\.rope\.dimension_count is 4, .* has 8"),
        ("starcoder2", STARCODER, {"rope.freq_base": 100.0}, r"starcoder2\.rope\.freq_base is 100\.0, .* has 10000\.0"),
    ],
)
def test_what_transformers_drops_is_refused_by_name(kind, fields, settings, named, tmp_path):
    file = write_gguf(tmp_path / "x.gguf", random_model(kind, **fields), kind, settings, {})
    with pytest.raises(MidblockError, match=rf"cannot convert .*{named}") as raised:
        gguf_folder(file)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaling_of_llama_3_is_found_in_its_divisors(factor, tmp_path):
    model, divisors = scaled_as_llama3(factor=factor, rope_theta=500000.0)
    check_equal(write_gguf(tmp_path / "x.gguf", model, "llama", {"rope.freq_base": 500000.0}, divisors), model)


def test_another_scaling_of_frequencies_is_refused(tmp_path):
    model, divisors = scaled_as_llama3(original_max_position_embeddings=64)
    file = write_gguf(tmp_path / "x.gguf", model, "llama", {}, divisors)
    with pytest.raises(MidblockError, match=r"does not read its tensor rope_freqs\.weight \(1 unread in all\)"):
        gguf_folder(file)


def test_merges_of_another_vocabulary(tmp_path):
    words = [*WORDS[:-1], "xyz"]
    file = write_gguf(tmp_path / "x.gguf", random_model("llama"), "llama", {}, {}, words=words)
    with pytest.raises(MidblockError, match=r"its tokenizer is broken: .*`ab` out of vocabulary") as raised:
        gguf_folder(file)
    assert "\n" not in str(raised.value)
