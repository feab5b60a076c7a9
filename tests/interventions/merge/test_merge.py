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
from midblock.checkpoints import TensorReader
from midblock.checkpoints.places import located
from midblock.interventions import merge
from midblock.interventions.merge.alphas import per_block
from midblock.runs.folder import read_record

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


def test_tensors_that_do_not_fit_are_named(parents, tmp_path):
    base, tuned = parents()
    name = "model.layers.1.self_attn.q_proj.weight"
    rewrite(tuned, **{name: torch.zeros(16, 32)})
    with pytest.raises(MidblockError, match=rf"{name} is \[32, 32\] in base and \[16, 32\] in tuned"):
        merge(base, tuned, 0.5, output_dir=tmp_path / "out")
    rewrite(tuned, **{name: None})
    with pytest.raises(MidblockError, match=f"base has the tensor {name}, tuned has not"):
        merge(base, tuned, 0.5, output_dir=tmp_path / "out")
    rewrite(tuned, **{name: torch.zeros(32, 32), "model.layers.1.extra.weight": torch.zeros(2)})
    with pytest.raises(MidblockError, match=r"tuned has the tensor model\.layers\.1\.extra\.weight, base has not"):
        merge(base, tuned, 0.5, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_resized_vocabulary_is_refused(parents, tmp_path):
    base, tuned = parents()
    rewrite(tuned, **{name: torch.zeros(304, 32) for name in ("model.embed_tokens.weight", "lm_head.weight")})
    with pytest.raises(MidblockError, match=r"(embed_tokens|lm_head).*vocabulary was resized"):
        merge(base, tuned, 0.5, output_dir=tmp_path / "out")


def test_whole_numbers_must_be_equal(parents, tmp_path):
    base, tuned = parents()
    name = "model.layers.0.mlp.table"
    for folder in (base, tuned):
        rewrite(folder, **{name: torch.arange(6)})
    merge(base, tuned, 0.5, output_dir=tmp_path / "out")
    assert torch.equal(tensors(tmp_path / "out")[name], torch.arange(6))
    rewrite(tuned, **{name: torch.arange(6) + 1})
    with pytest.raises(MidblockError, match=f"{name} is stored as torch.int64 in base"):
        merge(base, tuned, 0.5, output_dir=tmp_path / "other")


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
