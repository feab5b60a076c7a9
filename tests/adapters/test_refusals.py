"""Adapters that are not whole, or stand on a base that nothing can be added to; and what is told of those that are."""

import json

import pytest
import torch
from peft import HiraConfig, IA3Config, LoHaConfig, PromptEncoderConfig, PromptTuningConfig
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Lfm2Config

import midblock
from midblock.base import MidblockError
from midblock.checkpoints import load_pair, open_checkpoint
from midblock.checkpoints.merged_by_peft import Difference

from .test_names import checked, refused

FORMS = ("merged", "equal-rank", "lora-config")


def attempts(adapted, tmp_path):
    """What a user may do with an adapter, verb by verb."""
    base, adapter = str(adapted.base), str(adapted.adapter)
    asked = tmp_path / "qa.jsonl"
    asked.write_text("".join(json.dumps({"question": f"{i}?", "answer": str(i)}) + "\n" for i in range(8)))
    few = {"num_samples": 4}
    yield lambda: midblock.analyze(load_pair(base, adapter), str(asked), **few)
    yield lambda: midblock.analyze(load_pair(base, adapter), weights_only=True)
    yield lambda: midblock.merge(base, adapter, "0.5", output_dir=str(tmp_path / "merged"))
    yield lambda: midblock.probe(load_pair(base, adapter), str(asked), **few)
    yield lambda: midblock.swap(load_pair(base, adapter), str(asked), segments="3", **few)
    yield lambda: midblock.steer(base, adapter, str(asked))
    for form in FORMS:
        yield lambda form=form: midblock.export(adapter, tmp_path / form, to=form)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {}, r"adapter_model\.safetensors holds no tensors .*gather"),
        (
            lambda tensors: {name: torch.empty(0) if "lora_B" in name else value for name, value in tensors.items()},
            r"the tensor base_model\.model\.model\.layers\.0\.self_attn\.q_proj\.lora_B\.weight has no entries "
            r"\(6 of 12 tensors have none\)",
        ),
        (
            lambda tensors: {name: value[:0] if "1.self_attn.v" in name else value for name, value in tensors.items()},
            r"layers\.1\.self_attn\.v_proj\.lora_[AB]\.weight has no entries \(2 of 12",
        ),
    ],
    ids=["an empty file", "flat empty factors", "empty factors of one module"],
)
def test_what_was_not_gathered_is_named_by_every_verb(adapt, tmp_path, change, message):
    adapted = adapt()
    adapted.rewrite(change)
    for attempt in attempts(adapted, tmp_path):
        with pytest.raises(MidblockError, match=message):
            attempt()


def test_prompts_are_refused_by_every_verb(adapt, tmp_path):
    adapted = adapt(config=PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16))
    for attempt in attempts(adapted, tmp_path):
        with pytest.raises(MidblockError, match="p-tuning puts trained vectors before the text") as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_a_soft_prompt_is_refused_by_every_verb_but_those_that_take_it(adapt, tmp_path):
    adapted = adapt(config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    *ones, probing, swapping, steering, first, second, third = attempts(adapted, tmp_path)
    for attempt in (*ones, swapping, steering):
        with pytest.raises(MidblockError, match=r"has a soft prompt, which [a-z]+ does not take") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    for attempt in (first, second, third):
        with pytest.raises(MidblockError, match="prompt tuning puts trained vectors before the text"):
            attempt()
    assert "exit_nll" in set(probing().frame.metric)


@pytest.mark.parametrize("init", ["pissa_niter_16", "lora_ga", "corda"])
def test_starts_that_cannot_be_repeated_are_refused(adapt, init):
    adapted = adapt()
    adapted.configure(init_lora_weights=init)
    refused(adapted, f"its start init_lora_weights='{init}' took out of the base .*path_initial_model_for_weight")


def test_a_rank_that_is_not_the_configs(adapt):
    adapted = adapt()
    adapted.configure(r=8)
    refused(adapted, r"factors for .*q_proj have rank 4, its config says 8")


def test_a_base_of_other_shapes(adapt, pico):
    adapted = adapt()
    pico("llama", num_attention_heads=2, head_dim=4).save_pretrained(adapted.base)
    refused(adapted, r"changes model\.layers\.0\.self_attn\.q_proj\.weight in the shape .*another base was tuned")


def test_a_factor_without_its_partner_and_a_lost_magnitude(adapt):
    adapted = adapt(use_dora=True)
    adapted.rewrite(lambda tensors: {n: t for n, t in tensors.items() if "layers.1.self_attn.q_proj.lora_mag" not in n})
    refused(
        adapted, r"lacks the lora_magnitude_vector of model\.layers\.1\.self_attn\.q_proj\.weight, which its config"
    )
    adapted.rewrite(lambda tensors: {n: t for n, t in tensors.items() if "layers.1.self_attn.q_proj.lora_A" not in n})
    refused(adapted, r"lora_B\.weight without .*lora_A")


def test_modules_that_the_file_lacks_count_as_unchanged_and_are_told(adapt):
    adapted = adapt()
    adapted.rewrite(lambda tensors: {name: value for name, value in tensors.items() if ".layers.1." not in name})
    pair = load_pair(str(adapted.base), str(adapted.adapter), device="cpu")
    block = pair.tuned[0].model.model.layers[1]
    for name, value in pair.base.model.model.layers[1].named_parameters():
        assert torch.equal(value, block.get_parameter(name))
    notes = pair.notes()
    assert any("names model.layers.1.self_attn.q_proj and 1 more in its config and holds nothing" in n for n in notes)
    assert "The adapter adapter changes blocks 0, 2 only (2 of 3)." in notes


def test_a_whole_tensor_that_is_promised_and_not_there(adapt):
    adapted = adapt(modules_to_save=["norm"])
    adapted.rewrite(lambda tensors: {name: value for name, value in tensors.items() if "1.input_layernorm" not in name})
    refused(adapted, r"lacks model\.layers\.1\.input_layernorm\.weight \(modules_to_save\), which its config promises")


def test_a_module_that_would_start_at_random_is_refused(adapt):
    adapted = adapt()
    adapted.rewrite(lambda tensors: {name: value for name, value in tensors.items() if ".layers.1." not in name})
    adapted.configure(init_lora_weights=False)
    with pytest.raises(MidblockError, match=r"lacks .*layers\.1\..* which its config promises"):
        load_pair(str(adapted.base), str(adapted.adapter), device="cpu").tuned[0].model  # noqa: B018


def test_few_blocks_are_told_and_all_are_not(adapt):
    adapted = adapt(layers_to_transform=[1])
    assert "The adapter adapter changes block 1 only (1 of 3)." in checked(adapted)
    assert not any("changes" in note for note in checked(adapt()))
    assert "The adapter adapter changes none of the 3 blocks." in checked(adapt(target_modules=["lm_head"]))


def test_a_hybrid_of_which_few_blocks_have_attention(adapt):
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    kinds = ["full_attention" if block % 4 == 3 else "conv" for block in range(8)]
    config = Lfm2Config(**sizes, num_key_value_heads=2, num_hidden_layers=8, layer_types=kinds, pad_token_id=0)
    adapted = adapt(model=AutoModelForCausalLM.from_config(config), target_modules=["q_proj", "v_proj"])
    assert "The adapter adapter changes blocks 3, 7 only (2 of 8)." in checked(adapted)


@pytest.mark.parametrize(
    ("packed", "card", "words"),
    [
        (
            {"quant_method": "awq", "bits": 4},
            "---\nbase_model:\n- org/whole\ntags: [awq]\n---\n",
            r"\(AWQ\).*org/whole",
        ),
        ({"quant_method": "gptq", "bits": 4}, "---\nbase_model: org/whole\n---\n", r"\(GPTQ\).*org/whole"),
        ({"quant_method": "bitsandbytes"}, None, r"\(BITSANDBYTES\).*give its full-precision original with --base"),
        ({"quant_method": "compressed-tensors"}, "no header", r"full-precision original with --base"),
    ],
    ids=lambda value: value.get("quant_method") if isinstance(value, dict) else None,
)
def test_a_quantised_base_is_refused_and_its_original_named(adapt, packed, card, words):
    adapted = adapt()
    file = adapted.base / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": packed}))
    if card:
        (adapted.base / "README.md").write_text(card)
    refused(adapted, rf"stored quantised {words}" if words.startswith(r"\(") else words)


def test_a_base_that_is_an_adapter_is_refused(adapt):
    adapted = adapt()
    with pytest.raises(MidblockError, match=r"is an adapter itself.*merge that one first .*--base"):
        open_checkpoint(str(adapted.adapter), base=str(adapted.adapter))


def test_types_that_are_not_known_yet(adapt):
    adapted = adapt()
    adapted.configure(peft_type="NOTYET")
    with pytest.raises(MidblockError, match=r"the adapter .* does not fit its base: .*NOTYET"):
        load_pair(str(adapted.base), str(adapted.adapter), device="cpu").tuned[0].model  # noqa: B018


def test_a_coarse_type_is_no_reason_to_refuse(adapt):
    adapted = adapt(config=IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]))
    pair = load_pair(str(adapted.base), str(adapted.adapter), device="cpu", dtype="bfloat16")
    assert pair.tuned[0].model.dtype == torch.bfloat16


def test_the_name_in_a_record_tells_adapters_of_one_kind_apart(adapt):
    adapted = adapt(config=LoHaConfig(task_type="CAUSAL_LM", r=4, alpha=4, target_modules=["q_proj"]))
    hashes = set()
    for alpha in (4, 8, 4):
        adapted.configure(alpha=alpha)
        hashes.add(open_checkpoint(str(adapted.adapter), base=str(adapted.base)).weight_hash())
    assert len(hashes) == 2


def test_a_mixtral_adapter_by_its_old_names(adapt):
    """Experts were modules of their own before transformers stacked them: w1, w2, w3 of each."""
    adapted = adapt("mixtral", target_modules=["q_proj"])
    stream, tensors = torch.Generator().manual_seed(3), {}
    base = AutoModelForCausalLM.from_pretrained(adapted.base)
    expected = {name: value.clone() for name, value in base.state_dict().items()}
    inner = base.config.intermediate_size
    for layer in range(3):
        for expert in range(4):
            for role in ("w1", "w2", "w3"):
                rows, columns = (32, inner) if role == "w2" else (inner, 32)
                B, A = 0.1 * torch.randn(rows, 2, generator=stream), 0.1 * torch.randn(2, columns, generator=stream)
                name = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{role}"
                tensors |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
                stacked = expected[f"model.layers.{layer}.mlp.experts.{'down' if role == 'w2' else 'gate_up'}_proj"]
                part = stacked[expert] if role == "w2" else stacked[expert].split(inner)[role == "w3"]
                part += 2.0 * B @ A
    save_file(tensors, adapted.file)
    adapted.configure(target_modules=["w1", "w2", "w3"], r=2, lora_alpha=4)
    pair = load_pair(str(adapted.base), str(adapted.adapter), device="cpu")
    for name, value in pair.tuned[0].model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1.0, 0.01])
def test_a_merge_is_held_against_what_the_adapter_does(adapt, size):
    """PEFT merges HiRA into a scaled embedding wrongly; of a small adapter that is as wrong as of a large one."""
    config = HiraConfig(task_type="CAUSAL_LM", r=4, target_modules=["embed_tokens"])
    adapted = adapt("gemma3", config=config)
    adapted.rewrite(lambda tensors: {name: value * size**0.5 for name, value in tensors.items()})
    with pytest.raises(MidblockError, match=r"computes something else \(logits differ by .*, by the adapter itself"):
        load_pair(str(adapted.base), str(adapted.adapter), device="cpu").tuned[0].model  # noqa: B018


@pytest.mark.parametrize(
    ("error", "effect", "grain", "fits"),
    [
        (0.063, 0.27, 2**-7, True),  # IA3 in bfloat16 on a model of 30 blocks: rounding, and it is right
        (0.156, 0.041, 2**-7, False),  # HiRA on a scaled embedding: wrong
        (6.6e-6, 0.03, 2**-23, True),
        (9.3e-4, 2.0e-4, 2**-23, False),
        (2e-3, 1.0, 2**-23, False),  # more than any right one, however much the adapter does
        (float("nan"), 1.0, 2**-23, False),
    ],
)
def test_how_far_a_merge_may_be_off(adapt, error, effect, grain, fits):
    adapter = open_checkpoint(str(adapt().adapter)).adapter
    if fits:
        Difference(error, effect, grain).check(adapter)
        return
    with pytest.raises(MidblockError, match="computes something else"):
        Difference(error, effect, grain).check(adapter)
