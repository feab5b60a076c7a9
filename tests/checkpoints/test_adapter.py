import json

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from midblock.base import MidblockError
from midblock.checkpoints import name_patterns, open_checkpoint
from midblock.checkpoints.adapter import Adapter
from midblock.checkpoints.adapter_notes import adapter_notes
from midblock.checkpoints.merged_by_peft import put_on
from midblock.checkpoints.tensors import TensorReader

PROJECTIONS = ["q_proj", "v_proj", "down_proj"]


def pico_llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=100,
    )
    return LlamaForCausalLM(config)


def pico_gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=100, n_positions=16))


def save_pair(tmp_path, model, config):
    """Save a base and an adapter with random factors; return both folders and the merged weights by PEFT."""
    model.save_pretrained(tmp_path / "base")
    model.name_or_path = str(tmp_path / "base")
    tuned = get_peft_model(model, config)
    torch.manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name or "modules_to_save" in name or (parameter.requires_grad and "bias" in name):
            parameter.data.normal_()
    tuned.save_pretrained(tmp_path / "adapter")
    merged = tuned.merge_and_unload().state_dict()
    return tmp_path / "base", tmp_path / "adapter", merged


def check_against_peft(tmp_path, model, config):
    base_folder, folder, merged = save_pair(tmp_path, model, config)
    adapter = Adapter.open(folder)
    assert adapter.base.path == base_folder
    with TensorReader.open(base_folder) as base:
        ours = {name: base.read(name).double() for name in base}
        changed = {name for name in ours if not torch.equal(ours[name], merged[name].double())}
        for name, tensor in adapter.replaced(base):
            ours[name] = tensor.double()
        deltas = dict(adapter.deltas(base))
        for name, delta in deltas.items():
            ours[name] = ours[name] + delta.dense()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor.float(), merged[name], rtol=1e-5, atol=1e-5)
    assert changed == deltas.keys() | dict(adapter.replaced(TensorReader.open(base_folder))).keys()
    return deltas


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 7}},
        {"rank_pattern": {r"layers\.[01]\..*": 3}, "alpha_pattern": {"v_proj": 9}, "use_rslora": True},
        {"rank_pattern": {"^model.layers.2.mlp.down_proj$": 6}},
        {"layers_to_transform": [1]},
        {"modules_to_save": ["lm_head", "norm"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": "all-linear"},
        {"use_dora": False, "init_lora_weights": "gaussian"},
    ],
    ids=str,
)
def test_llama_equals_pefts_merge(tmp_path, options):
    options = {"r": 4, "lora_alpha": 6, "target_modules": PROJECTIONS, "task_type": "CAUSAL_LM"} | options
    check_against_peft(tmp_path, pico_llama(), LoraConfig(**options))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("fan_in_fan_out", [True, False])
@pytest.mark.parametrize("bias", ["none", "lora_only"])
def test_gpt2_equals_pefts_merge(tmp_path, fan_in_fan_out, bias):
    # attn.c_proj is square: only the config can tell its orientation
    targets = ["c_attn", "attn.c_proj", "c_fc"]
    config = LoraConfig(r=4, target_modules=targets, fan_in_fan_out=fan_in_fan_out, bias=bias, task_type="CAUSAL_LM")
    deltas = check_against_peft(tmp_path, pico_gpt2(), config)
    assert len(deltas) == 6


def test_base_file_with_a_prefix_less(tmp_path):
    base, folder, _ = save_pair(tmp_path, pico_gpt2(), LoraConfig(r=2, target_modules=["c_fc"], fan_in_fan_out=True))
    state = load_file(base / "model.safetensors")
    save_file({name.removeprefix("transformer."): tensor for name, tensor in state.items()}, base / "model.safetensors")
    with TensorReader.open(base) as reader:
        assert {name for name, _ in Adapter.open(folder).deltas(reader)} == {
            "h.0.mlp.c_fc.weight",
            "h.1.mlp.c_fc.weight",
        }


@pytest.fixture
def pair(tmp_path):
    base, folder, _ = save_pair(tmp_path, pico_llama(), LoraConfig(r=4, target_modules=PROJECTIONS))
    return base, folder


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def deltas(base, folder):
    with TensorReader.open(base) as reader:
        return list(Adapter.open(folder).deltas(reader))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "type LOHA"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"trainable_token_indices": [1]}, "single tokens"),
        ({"lora_bias": True}, "bias"),
    ],
)
def test_what_is_no_low_rank_change_says_so(pair, changes, message):
    base, folder = pair
    edit(folder, **changes)
    with pytest.raises(MidblockError, match=message):
        deltas(base, folder)


def test_ia3_says_so(tmp_path):
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    base, folder, _ = save_pair(tmp_path, pico_llama(), config)
    with pytest.raises(MidblockError, match=r"type IA3 is no low-rank change.*merge"):
        deltas(base, folder)


def test_rank_against_config(pair):
    edit(pair[1], r=8)
    with pytest.raises(MidblockError, match="have rank 4, its config says 8"):
        deltas(*pair)


def test_another_base(pair, tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=16, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, vocab_size=9)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    with pytest.raises(MidblockError, match="in the shape"):
        deltas(tmp_path / "other", pair[1])
    pico_gpt2().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(MidblockError, match="which its base has not"):
        deltas(tmp_path / "gpt2", pair[1])


def test_lost_factor(pair):
    file = pair[1] / "adapter_model.safetensors"
    state = load_file(file)
    del state[next(name for name in state if "lora_B" in name)]
    save_file(state, file)
    with pytest.raises(MidblockError, match=r"has .*lora_A.weight without .*lora_B.weight"):
        deltas(*pair)


def test_no_weights_or_pickled_ones(pair):
    folder = pair[1]
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(MidblockError, match="has no adapter_model"):
        Adapter.open(folder)
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(MidblockError, match="pickled"):
        Adapter.open(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not readable JSON"),
        ("[]", "holds no JSON object"),
        ("{}", "peft_type is not there"),
        ('{"peft_type": "LORA"}', "r is not there"),
    ],
)
def test_broken_config(pair, content, message):
    (pair[1] / "adapter_config.json").write_text(content)
    with pytest.raises(MidblockError, match=rf"adapter_config\.json:? {message}"):
        Adapter.open(pair[1])


WRONG = {
    "peft_type": [7, None, "", ["LORA"]],
    "base_model_name_or_path": [7, ["x"], {}, True],
    "revision": [7, []],
    "r": ["8", 0, -1, 2.5, 4.0, None, True, 10**9, [8]],
    "lora_alpha": ["8", None, float("inf"), 1e30, -1e30, [], True],
    "rank_pattern": [[], "x", 7, {"q_proj": "4"}, {"q_proj": 0}, {"q_proj": None}, {"q_proj": 2.0}],
    "alpha_pattern": [[], "x", {"q_proj": "4"}, {"q_proj": 1e30}],
    "target_modules": [7, {"q_proj": 1}, [7], [["q_proj"]]],
    "modules_to_save": [7, [7], {"lm_head": 1}],
    "target_parameters": [7, [None]],
    "layers_to_transform": ["1", [1.0], [-1], {}],
    "layers_pattern": [7, [7]],
    "exclude_modules": [7, {}, [None]],
    "use_rslora": ["true", 1, []],
    "use_dora": ["false", {}],
    "fan_in_fan_out": ["no"],
}


@pytest.mark.parametrize("key", WRONG)
def test_an_entry_of_another_type_is_named(pair, key):
    for value in WRONG[key]:
        edit(pair[1], **{key: value})
        with pytest.raises(MidblockError, match=rf"adapter_config\.json: {key}\b.* must be") as raised:
            Adapter.open(pair[1])
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"])
def test_a_pattern_that_hangs_is_refused_before_peft_sees_it(pair, key, monkeypatch):
    monkeypatch.setattr(name_patterns, "SECONDS", 0.5)
    base, folder = pair
    nested = r"(([a-z_.]|\d)+)+!"
    edit(folder, **{key: {nested: 4} if key.endswith("_pattern") else nested})
    with pytest.raises(MidblockError, match=rf"in {key} takes more than"):
        deltas(base, folder)
    adapter = Adapter.open(folder)
    with pytest.raises(MidblockError, match=rf"in {key} takes more than"), TensorReader.open(base) as tensors:
        put_on(pico_llama(), adapter, tensors)


def test_base_is_found_or_asked_for(pair):
    base, folder = pair
    edit(folder, base_model_name_or_path="../base")
    assert Adapter.open(folder).base.path.resolve() == base.resolve()
    edit(folder, base_model_name_or_path="builtin:smollm2-135m-instruct")
    assert Adapter.open(folder).base.kind == "builtin"
    edit(folder, base_model_name_or_path="org/name", revision="v2")
    assert Adapter.open(folder).base.label == "name@v2"
    edit(folder, base_model_name_or_path="/gone/away/base")
    with pytest.raises(
        MidblockError, match=r"base of the adapter .* was not found: no model at /gone/away/base.*--base"
    ):
        Adapter.open(folder)
    assert Adapter.open(folder, base=str(base)).base.path == base
    edit(folder, base_model_name_or_path=None)
    with pytest.raises(MidblockError, match=r"does not say what its base is.*--base"):
        Adapter.open(folder)
    with pytest.raises(MidblockError, match="is an adapter itself"):
        Adapter.open(folder, base=str(folder))


def test_peft_loads_what_we_read(pair):
    base, folder = pair
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), folder).merge_and_unload()
    with TensorReader.open(base) as reader:
        for name, delta in Adapter.open(folder).deltas(reader):
            merged = reader.read(name).double() + delta.dense()
            torch.testing.assert_close(model.state_dict()[name], merged.float(), rtol=1e-5, atol=1e-5)


def rewrite(folder, change):
    """The adapter's tensors, changed."""
    file = folder / "adapter_model.safetensors"
    made = {name: value for name, value in ((n, change(n, t)) for n, t in load_file(file).items()) if value is not None}
    save_file({name: value.contiguous() for name, value in made.items()}, file)


BROKEN = {
    "only B: A would be drawn by chance": (lambda n, t: None if "lora_A" in n else t, r"lora_B\.weight without"),
    "only A": (lambda n, t: None if "lora_B" in n else t, r"lora_A\.weight without"),
    "ranks of A and B": (lambda n, t: t[:2] if "lora_A" in n else t, "cannot be multiplied"),
    "rank of both": (lambda n, t: t[:2] if "lora_A" in n else t[:, :2], "have rank 2, its config says"),
    "a width": (lambda n, t: torch.ones(len(t), 64) if "lora_A" in n else t, "another base was tuned"),
    "one dimension": (lambda n, t: t.flatten(), "no matrix"),
    "none": (lambda n, t: t.sum(), "no matrix"),
    "whole numbers": (lambda n, t: t.to(torch.int8), "as int8, which are no numbers to add"),
    "long ones": (lambda n, t: t.to(torch.int64), "as int64"),
    "codes": (lambda n, t: t.to(torch.float8_e4m3fn), "as float8_e4m3fn"),
    "complex": (lambda n, t: t.to(torch.complex64), "as complex64"),
    "NaN": (lambda n, t: t * float("nan") if "layers.1" in n else t, r"NaN or Inf in .*layers\.1"),
    "Inf": (lambda n, t: t * float("inf") if "lora_B" in n else t, r"NaN or Inf in .*lora_B"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_factors_that_are_none(pair, kind):
    base, folder = pair
    change, message = BROKEN[kind]
    rewrite(folder, change)
    with pytest.raises(MidblockError, match=message) as raised:
        deltas(base, folder)
    assert "\n" not in str(raised.value)


def test_half_of_an_adapter_is_noted_or_refused(pair):
    base, folder = pair
    assert adapter_notes(open_checkpoint(str(folder), base=str(base)), "t") == []
    rewrite(folder, lambda name, value: None if "v_proj" in name else value)
    (note,) = adapter_notes(open_checkpoint(str(folder), base=str(base)), "t")
    assert "v_proj and 2 more in its config and holds nothing of them" in note
    edit(folder, init_lora_weights=False)  # what lacks would be drawn by chance
    with pytest.raises(MidblockError, match=r"holds nothing of .*v_proj \(3 modules in all\)"):
        adapter_notes(open_checkpoint(str(folder), base=str(base)), "t")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["k_proj"]}, r"its config does not target"),
        ({"layers_to_transform": [0]}, r"layers\.1.*does not target"),
        ({"exclude_modules": ["q_proj"]}, r"q_proj.*does not target"),
        ({"task_type": "nonsense"}, "PEFT cannot read .*Invalid task type"),
        ({"layers_pattern": "layers"}, "PEFT cannot read .*layers_to_transform"),
        ({"eva_config": "x"}, "PEFT cannot read"),
    ],
)
def test_a_config_that_is_another_adapters(pair, changes, message):
    base, folder = pair
    edit(folder, **changes)
    with pytest.raises(MidblockError, match=message) as raised:
        adapter_notes(open_checkpoint(str(folder), base=str(base)), "t")
    assert "\n" not in str(raised.value)


def test_an_ia3_config_on_factors_of_lora(pair):
    base, folder = pair
    edit(folder, peft_type="IA3")
    with pytest.raises(MidblockError, match="type IA3 is no low-rank change"):
        deltas(base, folder)
    with TensorReader.open(base) as tensors, pytest.raises(MidblockError, match="which its base has not"):
        put_on(pico_llama(), Adapter.open(folder), tensors)
