"""Adapters on every family: only the planned ones train, they load with plain PEFT, what PEFT ignores is noticed."""

import copy
import json
import math
import warnings

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model

from midblock.base import LayerPlan, MidblockError
from midblock.tuning.place.adapter_plan import place_adapters
from midblock.tuning.place.adapters import adapter_parameters, attach, check_adapters, lora_config
from midblock.tuning.settings import Placement

IDS = torch.tensor([[5, 9, 120, 33, 7, 250, 41, 8, 99, 17]])
MIDDLE = LayerPlan.parse("010", 3)
ENDS = LayerPlan.parse("4,0,3", 3)


def attached(model, plan=ENDS, seed=0, **options):
    settings = Placement(**{"lora_r": 4, "target_modules": "all", **options})
    adapters = place_adapters(model, plan, settings)
    return attach(model, adapters, settings, seed=seed), adapters, settings


def disturb(model, seed=3):
    """Adapters as after training."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def lora_state(model):
    return {name: value.detach().clone() for name, value in model.named_parameters() if ".lora_" in name}


def owner(name):
    """Base name of the module that a factor of a linear layer belongs to."""
    return name.removeprefix("base_model.model.").partition(".lora_")[0]


@pytest.mark.parametrize("plan", [MIDDLE, ENDS], ids=["010", "4,0,3"])
def test_only_the_planned_adapters_learn(family, pico, plan):
    base = pico(family)
    reference = logits(base)
    model, adapters, _ = attached(base, plan)
    assert torch.equal(logits(model), reference)
    model.train()
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    learning = [name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()]
    assert all(".lora_B." in name for name in learning)
    assert len(learning) == len(adapters.targets)
    linear = {target.name for target in adapters.targets if not target.by_parameter}
    assert linear == {owner(name) for name in learning if ".experts." not in name}
    assert all(".lora_" in name for name, value in model.named_parameters() if value.grad is not None)
    assert sum(value.numel() for value in model.parameters() if value.requires_grad) == adapters.parameters


def test_plain_peft_loads_what_was_saved(family, pico, tmp_path):
    model, adapters, settings = attached(pico(family))
    disturb(model)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # PEFT's, of patterns for fused experts that do match
        fresh = PeftModel.from_pretrained(pico(family), tmp_path, is_trainable=True).eval()
    assert torch.equal(logits(fresh), logits(model.eval()))
    assert not torch.allclose(logits(fresh), logits(pico(family)), atol=1e-3)
    check_adapters(fresh, adapters, settings)


def test_the_config_as_it_is_saved(pico, tmp_path):
    settings = Placement(target_modules="q_proj,v_proj", lora_dropout=0.05)
    base = pico("llama")
    base.config.save_pretrained(tmp_path / "base")
    adapters = place_adapters(base, ENDS, settings)
    attach(base, adapters, settings, seed=0, base=str(tmp_path / "base")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    layers = "model.layers."
    assert sorted(config["target_modules"]) == [
        f"{layers}{block}.self_attn.{role}" for block in (0, 2) for role in ("q_proj", "v_proj")
    ]
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.05)
    keys = [rf"^model\.layers\.2\.self_attn\.{role}$" for role in ("q_proj", "v_proj")]
    assert config["rank_pattern"] == dict.fromkeys(keys, 3)
    assert config["alpha_pattern"] == dict.fromkeys(keys, 6)
    assert (config["base_model_name_or_path"], config["task_type"]) == (str(tmp_path / "base"), "CAUSAL_LM")
    assert config["init_lora_weights"] is True


def test_shortened_names_do_not_reach_other_blocks(pico):
    """More names than PEFT keeps in full: it shortens them to endings, such as `2.self_attn.q_proj`."""
    model, adapters, settings = attached(
        pico("llama", num_hidden_layers=13), LayerPlan(13, (0, 1, 2, 10, 11, 12), (1, 2, 3, 4, 5, 6))
    )
    check_adapters(model, adapters, settings)
    ranks = {name: delta.rank for name, delta in adapter_parameters(model).items() if name.endswith("q_proj")}
    assert list(ranks.values()) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("pattern", [{1: 2, 2: 3}, {"1": 2, "2": 3}], ids=["numbers", "digits"])
def test_integer_keys_are_ignored_by_peft_and_noticed_here(pico, pattern):
    """P1's way of giving a rank to each layer."""
    settings = Placement(target_modules="q_proj")
    base = pico("llama")
    adapters = place_adapters(base, LayerPlan(3, (0, 1, 2), (8, 2, 3)), settings)
    config = lora_config(adapters, settings, None)
    config.r, config.lora_alpha, config.alpha_pattern = 8, 16, {}
    config.rank_pattern = pattern
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = get_peft_model(base, config)
    with pytest.raises(MidblockError, match=r"layers.1.self_attn.q_proj: rank should be 2, it is 8"):
        check_adapters(wrong, adapters, settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.target_modules.remove("model.layers.1.self_attn.k_proj"), r"k_proj should have an"),
        (lambda config: config.target_modules.append("model.layers.0.mlp.up_proj"), r"up_proj has an adapter and"),
        (lambda config: setattr(config, "lora_alpha", 9), r"q_proj: scale should be 2\.0, it is 2\.25"),
        (lambda config: setattr(config, "r", 2), r"q_proj: rank should be 4, it is 2"),
        (lambda config: setattr(config, "lora_dropout", 0.5), r"q_proj: dropout should be 0\.0, it is 0\.5"),
        (lambda config: setattr(config, "use_dora", True), r"q_proj: DoRA should be False, it is True"),
        (lambda config: setattr(config, "modules_to_save", ["lm_head"]), r"lm_head\.\S+ would be trained"),
    ],
    ids=["missing", "surplus", "scale", "rank", "dropout", "dora", "whole module"],
)  # fmt: skip
def test_a_config_that_is_not_the_plan_is_noticed(pico, change, message):
    settings = Placement(lora_r=4)
    base = pico("llama")
    adapters = place_adapters(base, MIDDLE, settings)
    config = lora_config(adapters, settings, None)
    config.target_modules = list(config.target_modules)
    change(config)
    with pytest.raises(MidblockError, match=message):
        check_adapters(get_peft_model(base, config), adapters, settings)


def test_tensors_of_another_shape_and_frozen_ones_are_noticed(pico):
    model, adapters, settings = attached(pico("llama"), MIDDLE)
    layer = model.get_base_model().model.layers[1].mlp.down_proj
    layer.lora_A["default"].weight.requires_grad_(False)
    with pytest.raises(MidblockError, match=r"down_proj.lora_A.default.weight is frozen"):
        check_adapters(model, adapters, settings)
    layer.lora_B["default"] = torch.nn.Linear(5, 32, bias=False)
    with pytest.raises(MidblockError, match=r"down_proj: shape of B should be \(32, 4\), it is \(32, 5\)"):
        check_adapters(model, adapters, settings)


def test_a_plan_for_another_model_is_noticed_when_it_is_attached(pico):
    settings = Placement(target_modules="mlp", lora_r=4)
    adapters = place_adapters(pico("llama"), MIDDLE, settings)
    with pytest.raises(MidblockError, match=r"gate_proj: shape of B should be \(48, 4\), it is \(64, 4\)"):
        attach(pico("llama", intermediate_size=64), adapters, settings, seed=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_seed_alone_decides_the_start(pico, family):
    torch.manual_seed(1)
    first = lora_state(attached(pico(family))[0])
    torch.manual_seed(2)
    torch.rand(7)
    before = torch.get_rng_state()
    base = pico(family)
    torch.set_rng_state(before)
    again = lora_state(attached(base)[0])
    assert torch.equal(torch.get_rng_state(), before)
    other = lora_state(attached(pico(family), seed=1)[0])
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert torch.equal(value, other[name]) == (".lora_B." in name)


@pytest.mark.parametrize(
    "options",
    [
        {"lora_alpha": 16.0},
        {"lora_scale": 0.3},
        {"use_rslora": True},
        {"use_rslora": True, "lora_alpha": 5.5},
        {"use_dora": True},
        {"lora_dropout": 0.1},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "pissa"},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_options_reach_peft_and_the_model_starts_as_the_base(pico, family, options):
    base = pico(family)
    if (family, options.get("init_lora_weights")) == ("gpt2", "olora"):
        with pytest.raises(MidblockError, match=r"no olora start .* \(in, out\) such as transformer.h.0.attn.c_attn"):
            attached(base, **options)
        return
    before = logits(base)
    model, adapters, settings = attached(base, **options)
    torch.testing.assert_close(logits(model.eval()), before, atol=2e-4, rtol=2e-4)
    assert sum(value.numel() for value in model.parameters() if value.requires_grad) == adapters.parameters
    for name, delta in adapter_parameters(model).items():
        alpha = options.get("lora_alpha")
        power = 0.5 if settings.use_rslora else 1.0
        scale = settings.lora_scale if alpha is None else alpha / delta.rank**power
        assert delta.scale == pytest.approx(scale), name


def test_an_orthogonal_start(pico):
    model, _, _ = attached(pico("llama"), MIDDLE, init_lora_weights="orthogonal")
    torch.testing.assert_close(logits(model), logits(pico("llama")), atol=1e-4, rtol=1e-4)
    with pytest.raises(MidblockError, match=r"even ranks, model.layers.2\S+ has 3"):
        attached(pico("llama"), init_lora_weights="orthogonal")


@pytest.mark.parametrize("init", ["loftq", "eva", "pisa", "Gaussian"])
def test_a_start_that_is_not_there(pico, init):
    with pytest.raises(MidblockError, match=f"unknown init_lora_weights '{init}'"):
        attached(pico("llama"), init_lora_weights=init)


@pytest.mark.parametrize("init", ["pissa_niter_4", "corda", "lora_ga"])
def test_a_start_that_could_not_be_repeated(pico, init):
    with pytest.raises(MidblockError, match=f"'{init}' takes out of the base what loading .* could not find again"):
        attached(pico("llama"), init_lora_weights=init)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lora_dropout": 0.1}, "lora_dropout"),
        ({"use_dora": True}, "use_dora"),
        ({"init_lora_weights": "pissa"}, "pissa"),
    ],
)
def test_what_peft_has_not_for_fused_experts(pico, options, named):
    with pytest.raises(MidblockError, match=rf"PEFT has no \S*\s?'?{named}'? for fused experts .*experts"):
        attached(pico("mixtral"), **options)
    attached(pico("mixtral"), **options, target_modules="attention")


def test_what_peft_refuses_is_said_in_one_line(pico):
    with pytest.raises(MidblockError, match=r"PEFT refuses these adapters: .*float16"):
        attached(pico("llama").double(), init_lora_weights="pissa")


def test_experts_stored_transposed(tmp_path):
    config = transformers.GptOssConfig(
        vocab_size=300, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4,
    )  # fmt: skip
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(config).eval()
    model, _, _ = attached(copy.deepcopy(base), LayerPlan(2, (0, 1), (3, 2)))
    disturb(model)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        fresh = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert torch.equal(logits(fresh), logits(model))
    assert not torch.allclose(logits(model), logits(base), atol=1e-4)


def test_no_warning_about_patterns_that_do_match(pico):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached(pico("mixtral"))
        attached(pico("gpt2"))


def test_the_factors_are_the_live_parameters_and_make_the_merged_weight(family, pico):
    base = pico(family)
    model, adapters, _ = attached(copy.deepcopy(base))
    disturb(model)
    found = adapter_parameters(model)
    linear = {target.name: target for target in adapters.targets if not target.by_parameter}
    assert set(found) == set(linear)
    live = {id(value) for value in model.parameters() if value.requires_grad}
    merged = model.merge_and_unload()
    for name, delta in found.items():
        assert {id(delta.A), id(delta.B)} <= live
        assert delta.shape == linear[name].shape
        change = (merged.get_submodule(name).weight - base.get_submodule(name).weight).double().detach()
        change = change.T if linear[name].transposed else change
        torch.testing.assert_close(delta.dense().detach(), change, atol=1e-5, rtol=1e-3)


def test_adapters_of_a_16_bit_model_are_float32(pico):
    model, adapters, settings = attached(pico("llama").to(torch.bfloat16))
    check_adapters(model, adapters, settings)
    assert {value.dtype for value in model.parameters() if value.requires_grad} == {torch.float32}
    assert math.isfinite(float(logits(model).float().sum()))
