"""Merged checkpoints and equal-rank adapters against PEFT's own logits, on real adapters of pico models."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from midblock.base import MidblockError
from midblock.checkpoints import EffectiveTensors, TensorReader, open_checkpoint
from midblock.tuning.export.equal_rank import common_alpha, served_rank
from midblock.tuning.export.export import export, run_export
from midblock.tuning.export.merged import Merge, rounding_loss

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

IDS = torch.tensor([[5, 9, 40, 7, 100, 3, 17, 200, 4, 61]])
TARGETS = {
    "llama": ["q_proj", "down_proj"],
    "llama_tied": ["v_proj", "up_proj"],
    "qwen2": ["k_proj", "gate_proj"],
    "gemma2": ["q_proj", "down_proj"],
    "gemma3": ["o_proj", "up_proj"],
    "phi3": ["qkv_proj", "gate_up_proj"],
    "gpt2": ["c_attn", "attn.c_proj", "mlp.c_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "falcon": ["query_key_value", "dense_4h_to_h"],
    "bloom": ["query_key_value", "dense"],
    "opt": ["q_proj", "fc2"],
    "mixtral": ["q_proj", "o_proj"],
    "olmoe": ["v_proj"],
    "qwen3_moe": ["k_proj"],
}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def block_pattern(family, ranks):
    where = "h" if family in ("gpt2", "falcon", "bloom") else "layers"
    return {rf".*{where}\.{block}\..*": rank for block, rank in ranks.items()}


@pytest.fixture
def make(tmp_path, pico, tokenizer):
    """Save a base and an adapter with random factors; give both folders and the logits of PEFT's unmerged model."""

    def run(family="llama", dtype=torch.float32, shard="1GB", scale=0.3, adapter_dtype=None, **options):
        model = pico(family).to(dtype)
        base, folder = tmp_path / "base", tmp_path / "adapter"
        model.save_pretrained(base, max_shard_size=shard)
        tokenizer.save_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model.name_or_path = str(base)
        given = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS[family], "task_type": "CAUSAL_LM", **options}
        given["fan_in_fan_out"] = family == "gpt2"
        tuned = get_peft_model(model, LoraConfig(**given))
        torch.manual_seed(3)
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn_like(parameter) * scale
                whole = "modules_to_save" in name or "magnitude" in name or name.endswith("bias")
                parameter.data.copy_(parameter.data + noise if whole else noise)  # in place: tied factors stay tied
        tuned.save_pretrained(folder)
        if adapter_dtype is not None:
            kept = load_file(folder / "adapter_model.safetensors")
            rounded = {name: tensor.to(adapter_dtype) for name, tensor in kept.items()}
            save_file(rounded, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        return base, folder, logits(on_base(base, folder))

    return run


def on_base(base, adapter, dtype=torch.float32):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), adapter).eval()


def whole(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits.float()


def tensors(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def check_logits(found, expected, base):
    size = expected.abs().max()
    assert (found - expected).abs().max() < 2e-5 * size
    assert (logits(whole(base)) - expected).abs().max() > 1e-2 * size, "the adapter does nothing"


# merged


@pytest.mark.parametrize("family", TARGETS)
def test_merged_computes_what_peft_computes(make, tmp_path, family):
    base, adapter, expected = make(family, rank_pattern=block_pattern(family, {0: 3, 1: 6}))
    made = run_export(adapter, tmp_path / "out", "merged")
    assert made.path == tmp_path / "out"
    assert made.error < 1e-5
    check_logits(logits(whole(made.path)), expected, base)


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"modules_to_save": ["lm_head", "norm"]},
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
        {"alpha_pattern": {"q_proj": 3}, "layers_to_transform": [1]},
    ],
    ids=str,
)
def test_merged_with_what_peft_offers(make, tmp_path, options):
    base, adapter, expected = make("llama", **options)
    check_logits(logits(whole(export(adapter, tmp_path / "out"))), expected, base)


@pytest.mark.parametrize(
    ("options", "tied"),
    [
        ({"target_modules": ["lm_head", "q_proj"]}, False),
        ({"target_modules": ["embed_tokens", "q_proj"]}, False),
        ({"modules_to_save": ["embed_tokens"]}, False),
        ({"modules_to_save": ["lm_head"]}, False),
        ({"modules_to_save": ["lm_head"], "target_modules": ["embed_tokens"]}, False),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
        ({"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}, True),
    ],
    ids=str,
)
def test_tied_embeddings_stay_tied_only_while_both_change_alike(make, tmp_path, options, tied):
    base, adapter, expected = make("llama_tied", **options)
    out = export(adapter, tmp_path / "out")
    check_logits(logits(whole(out)), expected, base)
    assert AutoConfig.from_pretrained(out).tie_word_embeddings is tied
    assert ("lm_head.weight" in tensors(out)) is not tied


def test_gpt2_with_its_tied_head_changed(make, tmp_path):
    base, adapter, expected = make("gpt2", modules_to_save=["lm_head"])
    check_logits(logits(whole(export(adapter, tmp_path / "out"))), expected, base)


def test_trained_biases(make, tmp_path):
    base, adapter, expected = make("qwen2", bias="lora_only")
    check_logits(logits(whole(export(adapter, tmp_path / "out"))), expected, base)


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_untouched_is_bit_identical_and_the_rest_rounded_once(make, tmp_path, dtype, shard):
    base, adapter, _ = make("llama", dtype=dtype, shard=shard, layers_to_transform=[1])
    made = run_export(adapter, tmp_path / "out")
    before, after = tensors(base), tensors(made.path)
    merged = on_base(base, adapter, torch.float64).merge_and_unload().state_dict()
    touched = {f"model.layers.1.{name}.weight" for name in ("self_attn.q_proj", "mlp.down_proj")}
    assert before.keys() == after.keys()
    worst = 0.0
    for name, tensor in after.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, before[name]) == (name not in touched)
        if name in touched:
            spacing = torch.finfo(dtype).eps * merged[name].abs()
            assert bool(((tensor.double() - merged[name]).abs() <= 0.51 * spacing + 1e-7).all())
            lost = (tensor.double() - merged[name]).norm() / (merged[name] - before[name].double()).norm()
            worst = max(worst, float(lost))
    assert worst > 0
    if dtype != torch.float32:  # there PEFT's float32 factors make the larger error
        assert made.error == pytest.approx(worst, rel=1e-3)
    assert (len(list(made.path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    for file in made.path.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    if shard == "20KB":
        index = json.loads((made.path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in after.values())
        assert index["weight_map"].keys() == after.keys()


def test_another_type_is_written_into_the_config_too(make, tmp_path):
    _, adapter, expected = make("llama")
    out = export(adapter, tmp_path / "out", dtype="bfloat16")
    assert {tensor.dtype for tensor in tensors(out).values()} == {torch.bfloat16}
    assert AutoConfig.from_pretrained(out).dtype == torch.bfloat16
    assert (logits(whole(out)) - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_change_below_the_types_resolution_is_told(make, tmp_path):
    _, adapter, _ = make("llama", dtype=torch.bfloat16, scale=0.01)
    made = run_export(adapter, tmp_path / "out")
    assert made.error > 0.1
    assert made.notes == (f"rounding takes away up to {made.error:.0%} of a tensor's change; --dtype float32 keeps it",)
    assert run_export(adapter, tmp_path / "wide", dtype="float32").notes == ()


def test_a_damaged_entry_is_found(make, tmp_path):
    _, adapter, _ = make("llama")
    out, name = export(adapter, tmp_path / "out"), "model.layers.1.mlp.down_proj.weight"
    with EffectiveTensors.of_checkpoint(open_checkpoint(str(adapter))) as folded:
        merge = Merge(folded, None)
        with TensorReader.open(out) as written:
            assert 0 < rounding_loss(merge, name, written) < 1e-5
        spoilt = load_file(out / "model.safetensors")
        spoilt[name][3, 4] *= 1 + 2**-20
        save_file(spoilt, tmp_path / "spoilt.safetensors")
        with (
            TensorReader.open(tmp_path / "spoilt.safetensors") as written,
            pytest.raises(MidblockError, match=f"{name} reads back otherwise"),
        ):
            rounding_loss(merge, name, written)


def test_what_does_not_fit_into_the_type_is_refused(make, tmp_path):
    _, adapter, _ = make("llama", scale=300.0)
    with pytest.raises(MidblockError, match=r"entries too large for torch.float16 \(--dtype bfloat16"):
        export(adapter, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_merged_ships_the_tokenizer(make, tmp_path, tokenizer):
    from transformers import AutoTokenizer

    base, adapter, _ = make("llama")
    (base / "LICENSE").write_text("free\n")
    (base / "optimizer.pt").write_text("no")
    out = export(adapter, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out)("3 + 4 = 7").input_ids == tokenizer("3 + 4 = 7").input_ids
    assert (out / "LICENSE").exists()
    assert not (out / "optimizer.pt").exists()
    tokenizer.save_pretrained(adapter)
    file = adapter / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": 77}))
    again = export(adapter, out, overwrite=True)
    assert AutoTokenizer.from_pretrained(again).model_max_length == 77


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"trainable_token_indices": [5, 9]}),
        ("mixtral", {"trainable_token_indices": [5, 9]}),
    ],
    ids=str,
)
def test_what_is_no_low_rank_change_is_merged_by_peft(make, tmp_path, family, options):
    base, adapter, expected = make(family, **options)
    made = run_export(adapter, tmp_path / "out")
    assert made.notes[0].startswith("merged by PEFT")
    assert made.error < 1e-4
    check_logits(logits(whole(made.path)), expected, base)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"use_dora": True}),
        ("gpt2", {"use_dora": True}),
        ("phi3", {"use_dora": True, "use_rslora": True}),
        ("mixtral", {"target_parameters": EXPERTS}),
        ("olmoe", {"target_parameters": EXPERTS[:1], "target_modules": []}),
        ("qwen3_moe", {"target_parameters": EXPERTS, "target_modules": ["q_proj"]}),
    ],
    ids=str,
)
def test_magnitudes_and_experts_are_merged_tensor_by_tensor(make, tmp_path, family, options):
    base, adapter, expected = make(family, **options)
    made = run_export(adapter, tmp_path / "out")
    assert made.notes == ()
    assert 0 < made.error < 1e-5
    check_logits(logits(whole(made.path)), expected, base)


def test_a_stacked_merge_keeps_the_base_types_and_names(make, tmp_path):
    base, adapter, _ = make("mixtral", dtype=torch.bfloat16, target_parameters=EXPERTS, target_modules=[])
    before, after = tensors(base), tensors(export(adapter, tmp_path / "out"))
    assert {name: (t.dtype, t.shape) for name, t in before.items()} == {n: (t.dtype, t.shape) for n, t in after.items()}
    assert all(torch.equal(before[name], after[name]) for name in before if ".experts." not in name)


def test_another_base_is_refused(make, tmp_path, pico):
    _, adapter, _ = make("llama")
    pico("llama", hidden_size=64).save_pretrained(tmp_path / "wide")
    with pytest.raises(MidblockError, match="another base was tuned"):
        export(adapter, tmp_path / "out", base=str(tmp_path / "wide"))
    pico("mixtral", num_hidden_layers=2).save_pretrained(tmp_path / "short")
    with pytest.raises(MidblockError, match="another base was tuned"):
        export(adapter, tmp_path / "out", base=str(tmp_path / "short"))
    assert not (tmp_path / "out").exists()


def test_a_quantised_base_is_refused(make, tmp_path):
    base, adapter, _ = make("llama")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(MidblockError, match=r"stored quantised.*--base"):
        export(adapter, tmp_path / "out")


def test_a_base_whose_types_tell_that_it_is_quantised_is_refused(make, tmp_path):
    base, adapter, _ = make("llama")
    file, name = base / "model.safetensors", "model.layers.0.mlp.up_proj.weight"
    content = load_file(file)
    codes = {name: content[name].to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(1, 1)}
    for beside in (codes, {name: content[name].to(torch.int8)}):
        save_file({**content, **beside}, file, metadata={"format": "pt"})
        with pytest.raises(MidblockError, match=r"stored quantised.*--base"):
            export(adapter, tmp_path / "out")


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_what_no_model_loads_is_written_as_it_was(shard, make, tmp_path):
    base, adapter, expected = make("llama", shard=shard)
    names = ("mtp.layers.0.mlp.up_proj.weight", "model.layers.3.self_attn.q_proj.weight")
    extra = {name: torch.randn(4, 4) for name in names}
    file = sorted(base.glob("*.safetensors"))[-1]
    save_file({**load_file(file), **extra}, file, metadata={"format": "pt"})
    index = base / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        content["weight_map"] |= dict.fromkeys(extra, file.name)
        index.write_text(json.dumps(content))
    export(adapter, tmp_path / "out")
    with TensorReader.open(tmp_path / "out") as written:
        assert all(torch.equal(written.read(name), value) for name, value in extra.items())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)


# equal rank


@pytest.mark.parametrize("family", TARGETS)
def test_equal_rank_computes_what_the_mixed_ranks_computed(make, tmp_path, family):
    ranks = block_pattern(family, {0: 3, 1: 12})
    alphas = block_pattern(family, {1: 7})
    base, adapter, expected = make(family, rank_pattern=ranks, alpha_pattern=alphas)
    made = run_export(adapter, tmp_path / "out", "equal-rank")
    assert made.error < 1e-6
    check_logits(logits(on_base(base, made.path)), expected, base)
    config = json.loads((made.path / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (16, {}, {})
    for name, tensor in tensors(made.path).items():
        assert tensor.shape[0 if "lora_A" in name else 1] == 16
    check_as_vllm_does(made.path, base, expected)


def check_as_vllm_does(folder, base, expected):
    """The logits again, with nothing read from the config but lora_alpha and r."""
    config = json.loads((folder / "adapter_config.json").read_text())
    model, own = whole(base), tensors(folder)
    turned = config["fan_in_fan_out"]
    for name, A in own.items():
        if name.endswith("lora_A.weight"):
            delta = config["lora_alpha"] / config["r"] * own[name.replace("lora_A", "lora_B")] @ A
            module = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            module.weight.data += delta.T if turned else delta
    assert (logits(model) - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True, "rank_pattern": {"q_proj": 7}},
        {"target_modules": ["embed_tokens", "q_proj"], "rank_pattern": {"embed_tokens": 5}},
        {"rank_pattern": {"q_proj": 2}, "modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 20}, "layers_to_transform": [0, 2]},
    ],
    ids=str,
)
def test_equal_rank_with_what_peft_offers(make, tmp_path, options):
    base, adapter, expected = make("llama", **options)
    out = export(adapter, tmp_path / "out", "equal-rank")
    check_logits(logits(on_base(base, out)), expected, base)
    assert json.loads((out / "adapter_config.json").read_text())["use_rslora"] is False


def test_equal_rank_with_stacked_experts(make, tmp_path):
    options = {"target_modules": ["q_proj"], "target_parameters": EXPERTS, "r": 3, "lora_alpha": 3}
    base, adapter, expected = make("mixtral", **options, rank_pattern={"q_proj": 6}, alpha_pattern={"q_proj": 3})
    made = run_export(adapter, tmp_path / "out", "equal-rank")
    assert made.error < 1e-6
    check_logits(logits(on_base(base, made.path)), expected, base)


def test_patterns_about_stacked_experts_are_refused(make, tmp_path):
    options = {"target_modules": ["q_proj"], "target_parameters": EXPERTS}
    _, adapter, _ = make("mixtral", **options)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rank_pattern": {"experts.down_proj": 2}}))
    with pytest.raises(MidblockError, match="about stacked parameters"):
        export(adapter, tmp_path / "out", "equal-rank")


def test_the_commonest_scale_leaves_its_factors_bit_for_bit(make, tmp_path):
    # scale 2 for both projections of two blocks, 4 and 1 in the third
    base, adapter, expected = make(
        rank_pattern={r".*layers\.0\..*": 2, r".*layers\.1\..*": 8}, alpha_pattern={r".*layers\.(0)\..*": 4,
        r".*layers\.1\..*": 16, r".*layers\.2\..*q_proj": 16, r".*layers\.2\..*down_proj": 4},
    )  # fmt: skip
    out = export(adapter, tmp_path / "out", "equal-rank")
    config, before, after = json.loads((out / "adapter_config.json").read_text()), tensors(adapter), tensors(out)
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    for name, tensor in before.items():
        padded = after[name]
        kept = padded[: tensor.shape[0], : tensor.shape[1]]
        factor = {"layers.2.self_attn.q_proj.lora_B": 2.0, "layers.2.mlp.down_proj.lora_B": 0.5}
        ratio = next((value for part, value in factor.items() if part in name), 1.0)
        assert torch.equal(kept, ratio * tensor)
        assert padded.count_nonzero() == tensor.count_nonzero()
    check_logits(logits(on_base(base, out)), expected, base)


def test_a_half_precision_factor_is_widened_only_where_the_ratio_would_round_it(make, tmp_path):
    base, adapter, _ = make(adapter_dtype=torch.bfloat16, alpha_pattern={"q_proj": 3, "layers.0.self_attn.q_proj": 4})
    made = run_export(adapter, tmp_path / "out", "equal-rank")
    assert made.error < 1e-6
    wide = {name for name, tensor in tensors(made.path).items() if tensor.dtype == torch.float32}
    assert wide == {f"base_model.model.model.layers.{block}.self_attn.q_proj.lora_B.weight" for block in (1, 2)}
    check_logits(logits(on_base(base, made.path)), logits(on_base(base, adapter)), base)


@pytest.mark.parametrize(("ranks", "padded"), [((1,), 8), ((8, 3), 8), ((42,), 64), ((341,), 512), ((600, 2), 600)])
def test_the_next_rank_that_vllm_takes(ranks, padded):
    assert served_rank(ranks) == padded


@pytest.mark.parametrize(
    ("scales", "rank", "alpha"),
    [
        ([2.0, 2.0, 1.0], 64, 128),
        ([1.0, 2.0, 2.0], 8, 16),
        ([8 / 3, 8 / 3, 0.5], 16, 8),  # 8/3 of 16 is not whole
        ([128 / 341], 512, 512),
        ([0.0], 8, 8),
    ],
)
def test_the_common_alpha_is_whole_and_its_scale_exact(scales, rank, alpha):
    assert common_alpha(scales, rank) == alpha


def test_dora_and_altering_starts_cannot_be_equal_rank(make, tmp_path):
    _, adapter, _ = make(use_dora=True)
    with pytest.raises(MidblockError, match=r"DoRA cannot be given one rank and scale \(--to merged"):
        export(adapter, tmp_path / "out", "equal-rank")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_dora": False, "init_lora_weights": "pissa"}))
    with pytest.raises(MidblockError, match="pissa"):
        export(adapter, tmp_path / "out", "equal-rank")
