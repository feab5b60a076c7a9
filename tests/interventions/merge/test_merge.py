"""Merged checkpoints against their parents, tensor by tensor, on pico models of every family."""

import json
import re

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from midblock.base import LayerTable, MidblockError
from midblock.base.depth_list import per_block
from midblock.checkpoints import TensorReader
from midblock.checkpoints.places import located
from midblock.interventions import merge
from midblock.runs.record import read_record

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ALPHAS = (0.0, 0.3, 1.0)


@pytest.fixture
def parents(tmp_path, pico, tuned_from, tokenizer):
    """Save a base and a model tuned from it; give both folders."""

    def make(family="llama", dtype=torch.float32, tuned_dtype=None, shard="1GB", **changes):
        base = pico(family, **changes)
        tuned = tuned_from(base).to(tuned_dtype or dtype)
        base.to(dtype).save_pretrained(tmp_path / "base", max_shard_size=shard)
        tuned.save_pretrained(tmp_path / "tuned")
        for name in ("base", "tuned"):
            tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / "base", tmp_path / "tuned"

    return make


def tensors(folder):
    with TensorReader.open(folder) as reader:
        return {name: value.clone() for name, value in reader.items()}


def layer_of(name):
    """Where a tensor of a pico model sits, -1 to 3."""
    holder = re.match(r"(.*?)\.\d+\.", name)
    return located(name, (), {"blocks": holder[1] if holder else "-"}, 3).layer


def expected(base, tuned, alpha):
    """The float64 mean, rounded by torch; bytes of a parent at 0 and 1."""
    if alpha in (0, 1):
        return (tuned if alpha else base).double().to(base.dtype)
    return ((1 - alpha) * base.double() + alpha * tuned.double()).to(base.dtype)


def same_bits(one, other):
    return one.dtype == other.dtype and torch.equal(
        one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)
    )


def rewrite(folder, **changes):
    file = folder / "model.safetensors"
    content = load_file(file)
    for name, value in changes.items():
        content.pop(name) if value is None else content.update({name: value})
    save_file(content, file, metadata={"format": "pt"})


# what is written


def test_every_family(family, parents, pico, tuned_from, tmp_path):
    base, tuned = parents(family)
    merge(base, tuned, ALPHAS, output_dir=tmp_path / "out")
    one, two, out = tensors(base), tensors(tuned), tensors(tmp_path / "out")
    assert out.keys() == one.keys()
    for name, value in out.items():
        layer = layer_of(name)
        alpha = 0.0 if layer < 0 else 1.0 if layer >= 3 else ALPHAS[layer]
        assert same_bits(value, expected(one[name], two[name], alpha)), name
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    in_memory = pico(family)
    ours, theirs = (dict(each.named_parameters()) for each in (in_memory, tuned_from(in_memory)))
    for name, value in model.named_parameters():
        layer = layer_of(name)
        alpha = 0.0 if layer < 0 else 1.0 if layer >= 3 else ALPHAS[layer]
        torch.testing.assert_close(value, (1 - alpha) * ours[name] + alpha * theirs[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_half_is_the_mean(dtype, parents, tmp_path):
    base, tuned = parents(dtype=dtype)
    merge(base, tuned, 0.5, output_dir=tmp_path / "out")
    one, two, out = tensors(base), tensors(tuned), tensors(tmp_path / "out")
    for name, value in out.items():
        assert same_bits(value, ((one[name].double() + two[name].double()) / 2).to(dtype)), name


@pytest.mark.parametrize("alpha", [0, 1])
def test_at_the_ends_the_parents_bytes_are_copied(alpha, parents, tmp_path):
    base, tuned = parents(dtype=torch.bfloat16)
    odd = torch.tensor([0x7FC1, -63, 0x7F81, -128], dtype=torch.int16).view(torch.bfloat16).repeat(8)  # NaNs, and Inf
    for folder in (base, tuned):
        rewrite(folder, **{"model.layers.1.input_layernorm.weight": odd})
    merge(base, tuned, alpha, output_dir=tmp_path / "out")
    parent, out = tensors((base, tuned)[alpha]), tensors(tmp_path / "out")
    assert all(same_bits(out[name], parent[name]) for name in parent)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["copied"] == summary["tensors"] == len(parent)


def test_a_wider_tuned_model_is_rounded_to_the_base(parents, tmp_path):
    base, tuned = parents(dtype=torch.bfloat16, tuned_dtype=torch.float32)
    merge(base, tuned, "0,0.5,1", output_dir=tmp_path / "out")
    one, two, out = tensors(base), tensors(tuned), tensors(tmp_path / "out")
    for name, value in out.items():
        layer = layer_of(name)
        alpha = (0.0, 0.5, 1.0)[min(max(layer, 0), 2)]
        assert same_bits(value, expected(one[name], two[name], alpha)), name


def test_another_dtype_is_written_and_said(parents, tmp_path):
    base, tuned = parents()
    merge(base, tuned, 0.5, output_dir=tmp_path / "out", dtype="bfloat16")
    assert {value.dtype for value in tensors(tmp_path / "out").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert yaml.safe_load((tmp_path / "out" / "mergekit.yaml").read_text())["out_dtype"] == "bfloat16"


def test_shards_follow_the_base(parents, tmp_path):
    base, tuned = parents(shard="60KB")
    merge(base, tuned, ALPHAS, output_dir=tmp_path / "out")
    index = "model.safetensors.index.json"
    ours, theirs = (json.loads((folder / index).read_text()) for folder in (base, tmp_path / "out"))
    assert ours["weight_map"] == theirs["weight_map"]
    assert theirs["metadata"]["total_size"] == ours["metadata"]["total_size"]
    assert len(set(theirs["weight_map"].values())) > 2
    one, two, out = tensors(base), tensors(tuned), tensors(tmp_path / "out")
    assert all(same_bits(out[name], expected(one[name], two[name], 0.3)) for name in out if ".layers.1." in name)


def test_overrides_change_just_their_module(parents, tmp_path):
    base, tuned = parents("mixtral")
    options = {"module_alphas": ("mlp=1,0.5", "q_proj=0.25"), "interpolation": "segments", "embedding_alpha": 0.75}
    merge(base, tuned, (0.0, 1.0), output_dir=tmp_path / "out", **options)
    one, two, out = tensors(base), tensors(tuned), tensors(tmp_path / "out")
    for name, value in out.items():
        layer = layer_of(name)
        alpha = {-1: 0.75, 3: 1.0}.get(layer, per_block((0.0, 1.0), 3, "segments")[min(max(layer, 0), 2)])
        if "experts" in name:  # the router is no part of the MLP
            alpha = (1.0, 1.0, 0.5)[layer]
        if "q_proj" in name:
            alpha = 0.25
        assert same_bits(value, expected(one[name], two[name], alpha)), name
    table = LayerTable.read(tmp_path / "out")
    assert table.models == ["out"]
    assert list(table.curve("merge_alpha", "out", "mlp").value) == [1.0, 1.0, 0.5]
    assert list(table.curve("merge_alpha", "out", "block").value) == [0.75, 0.0, 0.0, 1.0, 1.0]
    assert table.frame.n.sum() == sum(value.numel() for value in out.values())


def test_beyond_one_extrapolates_and_says_so(parents, tmp_path):
    base, tuned = parents()
    merge(base, tuned, 1.5, output_dir=tmp_path / "out")
    one, two, out = tensors(base), tensors(tuned), tensors(tmp_path / "out")
    assert all(same_bits(out[name], expected(one[name], two[name], 1.5)) for name in out)
    assert any("extrapolates" in note for note in read_record(tmp_path / "out")["notes"])


# heads


def tied_twice(folder):
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(folder, **{"lm_head.weight": embedding.clone()})


@pytest.mark.parametrize("stored_by", ["neither", "base", "tuned", "both"])
def test_a_tied_head_is_one_tensor_however_often_it_is_stored(stored_by, parents, tmp_path):
    base, tuned = parents("llama_tied")
    for folder in {"neither": (), "base": (base,), "tuned": (tuned,), "both": (base, tuned)}[stored_by]:
        tied_twice(folder)
    merge(base, tuned, (0.5, 0.0, 1.0), output_dir=tmp_path / "out")
    one, two, out = tensors(base), tensors(tuned), tensors(tmp_path / "out")
    assert out.keys() == one.keys()
    name = "model.embed_tokens.weight"
    assert same_bits(out[name], expected(one[name], two[name], 0.5))
    if "lm_head.weight" in out:
        assert same_bits(out["lm_head.weight"], out[name])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    notes = read_record(tmp_path / "out")["notes"]
    assert any("tied to the embedding" in note for note in notes)
    with pytest.raises(MidblockError, match="tied to the embedding"):
        merge(base, tuned, 0.0, output_dir=tmp_path / "other", head_alpha=1.0)


@pytest.mark.parametrize("untied", ["base", "tuned"])
def test_a_head_that_only_one_has_meets_the_others_embedding(untied, parents, tmp_path):
    base, tuned = parents("llama_tied")
    folder = {"base": base, "tuned": tuned}[untied]
    head = torch.randn(300, 32, generator=torch.Generator().manual_seed(5))
    rewrite(folder, **{"lm_head.weight": head})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    merge(base, tuned, 0.25, output_dir=tmp_path / "out")
    heads = [tensors(each).get("lm_head.weight", tensors(each)["model.embed_tokens.weight"]) for each in (base, tuned)]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not model.config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, expected(*heads, 0.25))


# adapters


@pytest.fixture
def adapter(parents, tmp_path):
    def make(family="llama", **options):
        base, _ = parents(family)
        model = AutoModelForCausalLM.from_pretrained(base)
        model.name_or_path = str(base)
        tuned = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **options}))
        torch.manual_seed(3)
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.copy_(0.1 * torch.randn_like(parameter))
        tuned.save_pretrained(tmp_path / "adapter")
        return base, tmp_path / "adapter", tuned.merge_and_unload()

    return make


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"target_modules": ["q_proj", "down_proj"]}),
        ("llama", {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "model.norm"]}),
        ("llama_tied", {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]}),
        ("gpt2", {"target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True}),
        ("llama", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    ],
)
def test_an_adapter_gives_a_share_of_its_change(family, options, adapter, tmp_path):
    base, folder, merged = adapter(family, **options)
    merge(base, folder, (0.0, 0.4, 1.0), output_dir=tmp_path / "out")
    found, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"]
    ours, theirs = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters()), dict(merged.named_parameters())
    ours.setdefault("lm_head.weight", merged.get_input_embeddings().weight)
    moved = 0
    for name, value in found.named_parameters():
        layer = layer_of(name)
        alpha = (0.0, 0.4, 1.0)[min(max(layer, 0), 2)]
        torch.testing.assert_close(value, (1 - alpha) * ours[name] + alpha * theirs[name], rtol=1e-5, atol=1e-6)
        moved += not torch.equal(value, ours[name])
    assert moved > 1
    with TensorReader.open(base) as one, TensorReader.open(tmp_path / "out") as out:
        assert all(same_bits(out.read(name), one.read(name)) for name in one.names if layer_of(name) <= 0)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    # what the adapter leaves alone is copied, and what it replaces, at 1: two blocks of changed matrices remain
    assert summary["tensors"] - summary["copied"] == 2 * len(options["target_modules"])
    recipe = yaml.safe_load((tmp_path / "out" / "mergekit.yaml").read_text())
    assert recipe["models"][1]["model"] == f"{base.resolve()}+{folder.resolve()}"


def test_an_adapter_that_is_no_change_of_tensors(adapter, tmp_path):
    base, folder, _ = adapter(target_modules=["q_proj"], trainable_token_indices=[3])
    with pytest.raises(MidblockError, match="single tokens"):
        merge(base, folder, 0.5, output_dir=tmp_path / "out")


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe"])
def test_an_adapter_on_experts_gives_each_its_share(family, adapter, tmp_path):
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    base, folder, merged = adapter(family, target_modules=[], target_parameters=experts)
    merge(base, folder, (0.0, 0.4, 1.0), output_dir=tmp_path / "out")
    assert tensors(tmp_path / "out").keys() == tensors(base).keys()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ours, theirs = (dict(each.named_parameters()) for each in (AutoModelForCausalLM.from_pretrained(base), merged))
    for name, value in found.named_parameters():
        alpha = (0.0, 0.4, 1.0)[min(max(layer_of(name), 0), 2)]
        torch.testing.assert_close(value, (1 - alpha) * ours[name] + alpha * theirs[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(value, ours[name]) == (".experts." not in name or layer_of(name) == 0)


# parents that do not fit


def test_tensors_that_do_not_fit_are_named(parents, pico, tmp_path):
    base, tuned = parents()
    name = "model.layers.1.self_attn.q_proj.weight"
    rewrite(tuned, **{name: torch.zeros(16, 32)})
    with pytest.raises(MidblockError, match=rf"tuned: {name} is \[16, 32\], its config wants \[32, 32\]"):
        merge(base, tuned, 0.5, output_dir=tmp_path / "out")
    pico("llama", intermediate_size=40).save_pretrained(tmp_path / "narrow")
    with pytest.raises(MidblockError, match=r"mlp\.\w+\.weight is \[.*48.*\] in base and \[.*40.*\] in narrow"):
        merge(base, tmp_path / "narrow", 0.5, output_dir=tmp_path / "out")
    rewrite(tuned, **{name: None})
    with pytest.raises(MidblockError, match=f"base has the tensor {name}, tuned has not"):
        merge(base, tuned, 0.5, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_resized_vocabulary_is_refused(parents, tmp_path):
    base, tuned = parents()
    rewrite(tuned, **{name: torch.zeros(304, 32) for name in ("model.embed_tokens.weight", "lm_head.weight")})
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps({**config, "vocab_size": 304}))
    with pytest.raises(MidblockError, match=r"(embed_tokens|lm_head).*vocabulary was resized"):
        merge(base, tuned, 0.5, output_dir=tmp_path / "out")


def notes_of(run):
    return json.loads((run / "run.json").read_text())["notes"]


MODULE = {f"model.layers.3.{name}": torch.full((4,), 3.0) for name in ("mlp.up_proj.weight", "enorm.weight")}


@pytest.mark.parametrize("owner", [(0,), (1,), (0, 1)], ids=["base", "tuned", "both"])
def test_what_no_model_loads_is_not_mixed_and_said(owner, parents, tmp_path):
    folders = parents()
    for which in owner:
        rewrite(folders[which], **{name: value + which for name, value in MODULE.items()})
    merge(*folders, 1, output_dir=tmp_path / "out", module_alphas=("up_proj=0.5",))
    out, tuned = tensors(tmp_path / "out"), tensors(folders[1])
    assert all(torch.equal(out[name], value + owner[0]) for name, value in MODULE.items())
    assert all(same_bits(out[name], tuned[name]) for name in out.keys() - MODULE.keys() if "up_proj" not in name)
    (said,) = [note for note in notes_of(tmp_path / "out") if "model.layers.3.*" in note]
    assert said.startswith(
        f"2 tensors in the files of {'base' if 0 in owner else 'tuned'} (2 in model.layers.3.*) are no"
    )
    assert said.endswith("they are the base's." if 0 in owner else "they are the tuned model's, the base has none.")
    _, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"]


def test_parents_with_nothing_beside_their_models_leave_no_note(parents, tmp_path):
    merge(*parents(), 0.5, output_dir=tmp_path / "out")
    assert not [note for note in notes_of(tmp_path / "out") if "transformers does not load" in note]


def test_buffers_may_be_on_one_side_only(parents, tmp_path):
    base, tuned = parents()
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(base, **{name: torch.ones(4)})
    merge(base, tuned, 0.5, output_dir=tmp_path / "out")
    assert torch.equal(tensors(tmp_path / "out")[name], torch.ones(4))


def test_numbers_that_cannot_be_blended_are_named(parents, tmp_path):
    base, tuned = parents()
    name = "model.layers.1.mlp.up_proj.weight"
    weight = tensors(tuned)[name]
    for value, says in ((float("nan"), f"NaN or Inf in the weight {name} of tuned"), (3e38, "too large for")):
        weight[3, 5] = value
        rewrite(tuned, **{name: weight})
        with pytest.raises(MidblockError, match=says):
            merge(base, tuned, 1.5, output_dir=tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == []


def test_a_prefix_in_front_of_all_names_may_differ(parents, tmp_path):
    base, tuned = parents("gpt2")
    content = load_file(tuned / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): value for name, value in content.items()},
        tuned / "model.safetensors",
        metadata={"format": "pt"},
    )
    merge(base, tuned, 1, output_dir=tmp_path / "out")
    assert all(same_bits(value, content[name]) for name, value in tensors(tmp_path / "out").items())


# one decoder alone, the other inside a multimodal model


@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "qwen2_5_vl"])
def test_a_tuned_decoder_goes_back_into_its_multimodal_model(kind, wrapped, tuned_from, tokenizer, tmp_path):
    whole, alone = wrapped(kind)
    tuned = tuned_from(alone)
    for model, name in ((whole, "whole"), (tuned, "alone")):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    merge(tmp_path / "whole", tmp_path / "alone", 0.5, output_dir=tmp_path / "out")
    before, out = tensors(tmp_path / "whole"), tensors(tmp_path / "out")
    assert before.keys() == out.keys()
    towers = [name for name in before if "vis" in name or "projector" in name]
    assert towers
    assert all(same_bits(out[name], before[name]) for name in towers)
    assert f"{len(towers)} tensors" in next(note for note in notes_of(tmp_path / "out") if "no part of alone" in note)
    merged = type(whole).from_pretrained(tmp_path / "out")
    ours, theirs = dict(alone.named_parameters()), dict(tuned.named_parameters())
    for name, value in merged.model.language_model.named_parameters():
        expect = expected(ours[f"model.{name}"], theirs[f"model.{name}"], 0.5)
        assert same_bits(value, expect), name
    assert same_bits(merged.lm_head.weight, expected(alone.lm_head.weight, tuned.lm_head.weight, 0.5))


def test_a_multimodal_models_decoder_goes_into_its_text_model(wrapped, tuned_from, tokenizer, tmp_path):
    whole, alone = wrapped("gemma3")
    for model, name in ((tuned_from(whole), "whole"), (alone, "alone")):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    merge(tmp_path / "alone", tmp_path / "whole", 1, output_dir=tmp_path / "out")
    tuned = tensors(tmp_path / "whole")
    out = tensors(tmp_path / "out")
    assert out.keys() == tensors(tmp_path / "alone").keys()
    assert all(same_bits(value, tuned[f"language_model.{name}"]) for name, value in out.items())


def test_a_tower_that_the_other_model_needs_is_missed(wrapped, tokenizer, tmp_path):
    whole, _ = wrapped("gemma3")
    for name in ("base", "tuned"):
        whole.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    lost = next(name for name in tensors(tmp_path / "base") if "vision_tower" in name)
    rewrite(tmp_path / "tuned", **{lost: None})
    with pytest.raises(MidblockError, match=f"base has the tensor {lost}, tuned has not"):
        merge(tmp_path / "base", tmp_path / "tuned", 0.5, output_dir=tmp_path / "out")


# quantised parents


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)], ids=["base", "tuned", "both"])
def test_float8_parents_are_mixed_as_their_weights(which, parents, tmp_path):
    folders = parents(dtype=torch.bfloat16, tuned_dtype=torch.bfloat16)
    meant = [{name: value.double() for name, value in tensors(folder).items()} for folder in folders]
    for at in which:
        made = {}
        for name, value in meant[at].items():
            if value.ndim == 2 and ".layers." in name:
                scale = (value.abs().max() / 448).float()
                codes = (value.float() / scale).to(torch.float8_e4m3fn)
                made |= {name: codes, f"{name}_scale_inv": scale.reshape(1, 1)}
                meant[at][name] = (codes.float() * scale).double()
        rewrite(folders[at], **made)
        config = json.loads((folders[at] / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        (folders[at] / "config.json").write_text(json.dumps(config))
    merge(*folders, 0.25, output_dir=tmp_path / "out")
    out = tensors(tmp_path / "out")
    assert out.keys() == meant[0].keys()
    for name, value in out.items():
        mean = 0.75 * meant[0][name] + 0.25 * meant[1][name]
        assert same_bits(value, mean.to(torch.bfloat16)), name
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    notes = notes_of(tmp_path / "out")
    assert sum("stores 21 weights as float8_e4m3fn" in note for note in notes) == len(which)
    assert any("is not quantised" in note for note in notes) == (0 in which)


def test_parents_of_unknown_codes_are_refused(parents, tmp_path):
    base, tuned = parents()
    name = "model.layers.1.mlp.up_proj.weight"
    for folder in (base, tuned):
        rewrite(folder, **{name: torch.zeros(48, 32, dtype=torch.int8)})
    with pytest.raises(MidblockError, match=rf"base stores {name} as codes \(int8\)"):
        merge(base, tuned, 0.5, output_dir=tmp_path / "out")


def test_a_tied_models_own_head_is_mixed(parents, tmp_path):
    base, tuned = parents("llama_tied")
    heads = [torch.randn(300, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    for folder, head in zip((base, tuned), heads, strict=True):
        rewrite(folder, **{"lm_head.weight": head})
    merge(base, tuned, 0.5, head_alpha=0.25, output_dir=tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(model.lm_head.weight, expected(*heads, 0.25))


@pytest.mark.parametrize("content", ["[" * 10**5, "[1]", '{"max_length": ' + "9" * 5000 + "}"])
def test_a_generation_config_that_is_none_stays_behind(content, parents, tmp_path):
    base, tuned = parents()
    (tuned / "generation_config.json").write_text(content)
    merge(base, tuned, 0.5, output_dir=tmp_path / "out")
    assert any("generation_config.json is broken" in note for note in notes_of(tmp_path / "out"))
    assert (tmp_path / "out" / "generation_config.json").read_text() != content


@pytest.mark.parametrize(
    ("size", "dtype", "told"), [(1e-3, "auto", True), (1e-3, "float32", False), (1.0, "auto", False)]
)
def test_what_rounding_takes_away_is_told(pico, tokenizer, tmp_path, size, dtype, told):
    """Of the share of a change that a merge takes, the most that rounding eats of one tensor."""
    base = pico("llama").bfloat16()
    base.save_pretrained(tmp_path / "base")
    tuned = pico("llama").bfloat16().float()
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in tuned.parameters():
            value += size * value.abs().mean() * torch.randn(value.shape, generator=stream)
    tuned.save_pretrained(tmp_path / "tuned")
    for name in ("base", "tuned"):
        tokenizer.save_pretrained(tmp_path / name)
    parents = str(tmp_path / "base"), str(tmp_path / "tuned")
    notes = read_record(merge(*parents, 0.5, output_dir=tmp_path / "m", dtype=dtype))["notes"]
    said = [
        note for note in notes if re.match(r"Rounding to bfloat16 takes away up to \d+% of a tensor's change", note)
    ]
    assert bool(said) == told
    if told:
        before, after, made = (tensors(tmp_path / name) for name in ("base", "tuned", "m"))
        name = "model.layers.1.mlp.up_proj.weight"
        wanted = 0.5 * (after[name].double() - before[name].double())
        lost = float((made[name].double() - before[name].double() - wanted).norm() / wanted.norm())
        assert lost > 0.5
        assert int(re.search(r"(\d+)%", said[0])[1]) >= int(100 * lost) - 1
