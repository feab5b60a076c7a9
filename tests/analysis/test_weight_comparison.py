import copy
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from midblock.analysis.weight_comparison import WeightComparison, in_both
from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, EffectiveTensors, Pair, load_pair
from midblock.metrics.catalogue import METRICS

WEIGHTS = frozenset(name for name, metric in METRICS.items() if metric.of_weights)
NORMS = frozenset({"delta_fro", "delta_rel", "changed_fraction"})
FUSED = ("phi3", "gpt2", "gpt_neox", "falcon", "falcon_7b", "falcon_rw", "bloom")


def compare(pair, wanted=WEIGHTS, layers=range(-1, 4), rank=4, notes=None):
    """{(layer, module, metric): value} of the first tuned model."""
    rows = rows_of(pair, wanted, layers, rank, notes)
    found = {(row.layer, row.module, row.metric): row.value for row in rows}
    assert len(found) == len(rows)
    return found


def rows_of(pair, wanted=WEIGHTS, layers=range(-1, 4), rank=4, notes=None):
    notes = [] if notes is None else notes
    comparison = WeightComparison(pair.base, pair.tuned[0], pair.blocks, wanted, frozenset(layers), rank, notes=notes)
    return list(comparison.rows())


def in_memory(base, tuned):
    return Pair.of_models(base, {"tuned": tuned}, None)


def norms(base, tuned):
    """Frobenius norm of the change over lists of arrays, absolute and relative."""
    change = math.sqrt(sum(((b - a) ** 2).sum() for a, b in zip(base, tuned, strict=True)))
    return change, change / math.sqrt(sum((a**2).sum() for a in base))


def by_role(model, role):
    """The name of the first parameter of a role."""
    return next(name for name, found in Anatomy.of(model).projections.items() if found.role == role)


def arrays(model):
    return {name: value.detach().double().numpy() for name, value in model.named_parameters()}


@pytest.fixture(scope="module")
def llamas(pico, tuned_from):
    base = pico("llama")
    return base, tuned_from(base)


@pytest.fixture
def saved(llamas, tokenizer, tmp_path):
    def save(model, name):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


def test_every_parameter_of_every_family_is_counted_once(family, pico, tuned_from):
    base = pico(family)
    tuned = tuned_from(base)
    rows = [row for row in rows_of(in_memory(base, tuned), NORMS) if row.metric == "delta_fro"]
    parts = [row for row in rows if row.module not in ("block", "attention", "mlp")]
    assert sum(row.n for row in parts) == sum(value.numel() for value in base.parameters())
    energy = math.sqrt(sum(row.value**2 for row in parts))
    expected = norms(list(arrays(base).values()), list(arrays(tuned).values()))[0]
    assert energy == pytest.approx(expected, rel=1e-9)


def test_groups_add_up_in_every_family(family, pico, tuned_from):
    base = pico(family)
    found = compare(in_memory(base, tuned_from(base)), NORMS)
    energy = defaultdict(float)
    for (layer, module, metric), value in found.items():
        if metric == "delta_fro":
            energy[layer, module] = value**2
    groups = {
        "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "mlp": ("gate_proj", "up_proj", "down_proj"),
    }
    for layer in range(3):
        for group, members in groups.items():
            total = sum(energy[layer, member] for member in members)
            assert energy[layer, group] == pytest.approx(total, rel=1e-9)
            assert total > 0
        inside = [module for at, module in energy if at == layer and module not in ("block", *groups)]
        assert energy[layer, "block"] == pytest.approx(sum(energy[layer, module] for module in inside), rel=1e-9)


@pytest.mark.parametrize("module", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
def test_a_projections_metrics_are_numpys(llamas, module):
    name = f"model.layers.1.{'mlp' if module in ('gate_proj', 'up_proj', 'down_proj') else 'self_attn'}.{module}.weight"
    base, tuned = (arrays(model)[name] for model in llamas)
    found = compare(in_memory(*llamas))
    fro, rel = norms([base], [tuned])
    sigma = np.linalg.svd(tuned - base, compute_uv=False)
    assert found[1, module, "delta_fro"] == pytest.approx(fro, rel=1e-10)
    assert found[1, module, "delta_rel"] == pytest.approx(rel, rel=1e-10)
    assert found[1, module, "delta_spectral"] == pytest.approx(sigma[0], rel=1e-9)
    assert found[1, module, "delta_stable_rank"] == pytest.approx((fro / sigma[0]) ** 2, rel=1e-9)
    U, _, Vt = np.linalg.svd(base)
    drift = np.linalg.norm(U[:, :4].T @ (tuned - base) @ Vt[:4].T) / fro
    assert found[1, module, "block_drift"] == pytest.approx(drift, rel=1e-6)


def test_the_attention_row_is_the_papers(llamas):
    base, tuned = (arrays(model) for model in llamas)
    names = [f"model.layers.2.self_attn.{part}_proj.weight" for part in "qkvo"]
    fro, rel = norms([base[name] for name in names], [tuned[name] for name in names])
    found = compare(in_memory(*llamas), NORMS)
    assert found[2, "attention", "delta_fro"] == pytest.approx(fro, rel=1e-10)
    assert found[2, "attention", "delta_rel"] == pytest.approx(rel, rel=1e-10)


def test_the_base_against_itself_has_not_changed(family, pico):
    base = pico(family)
    found = compare(in_memory(base, base))
    assert set(found.values()) == {0.0}
    assert (0, "block", "delta_rel") in found


def test_one_changed_entry_is_found_where_it_is(llamas, pico):
    base, tuned = llamas[0], pico("llama")
    with torch.no_grad():
        tuned.model.layers[1].mlp.down_proj.weight[2, 3] += 0.5
    found = compare(in_memory(base, tuned))
    moved = {(layer, module) for (layer, module, metric), value in found.items() if metric == "delta_fro" and value}
    assert moved == {(1, "down_proj"), (1, "mlp"), (1, "block")}
    assert found[1, "down_proj", "delta_fro"] == pytest.approx(0.5)
    assert found[1, "down_proj", "delta_stable_rank"] == pytest.approx(1)
    assert found[1, "down_proj", "delta_effective_rank"] == pytest.approx(1)
    assert found[1, "down_proj", "changed_fraction"] == pytest.approx(1 / (32 * 48))


def test_a_rank_one_change_has_rank_one(llamas, pico):
    tuned = pico("llama")
    with torch.no_grad():
        for block in tuned.model.layers:
            weight = block.self_attn.v_proj.weight
            weight += torch.outer(torch.linspace(-1, 1, weight.shape[0]), torch.ones(weight.shape[1]))
    found = compare(in_memory(llamas[0], tuned))
    for layer in range(3):
        assert found[layer, "v_proj", "delta_stable_rank"] == pytest.approx(1, abs=1e-6)
        assert found[layer, "v_proj", "delta_effective_rank"] == pytest.approx(1, abs=1e-6)


def test_layers_not_asked_for_are_not_read(llamas):
    found = compare(in_memory(*llamas), NORMS, layers=[1])
    assert {layer for layer, _, _ in found} == {1}


def test_the_embedding_and_the_head_have_norms_but_no_rotation(llamas):
    found = compare(in_memory(*llamas))
    assert (-1, "embedding", "delta_spectral") in found
    assert (3, "head", "delta_rel") in found
    assert not {(-1, "embedding", "block_drift"), (3, "head", "block_drift")} & set(found)


def test_a_tied_head_is_counted_with_the_embedding_only(pico, tuned_from, saved):
    base = pico("llama_tied")
    tuned = tuned_from(base)
    assert not any(module == "head" for _, module, _ in compare(in_memory(base, tuned)))
    on_disk = load_pair(saved(base, "base"), saved(tuned, "tuned"))
    assert not any(module == "head" for _, module, _ in compare(on_disk))


def test_files_and_memory_give_the_same(llamas, saved):
    on_disk = load_pair(saved(llamas[0], "base"), saved(llamas[1], "tuned"))
    assert compare(on_disk) == pytest.approx(compare(in_memory(*llamas)), rel=1e-12)
    assert on_disk.base.loaded is None
    assert on_disk.tuned[0].loaded is None


def rows_of_roles(family, model):
    """For each role of a fused weight, the indices of the fused outputs that `Projection.parts` gives it."""
    fused = by_role(model, "qkv")
    weight = model.get_parameter(fused)
    transposed = family == "gpt2"
    outputs = weight.shape[1] if transposed else weight.shape[0]
    ids = torch.arange(float(outputs))
    ids = ids.expand(weight.shape) if transposed else ids[:, None].expand(weight.shape)
    projection = Anatomy.of(model).projections[fused]
    parts = {role: part[:, 0].long() for role, part in projection.parts(ids.clone()).items()}
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(outputs))
    return fused, transposed, parts


@pytest.mark.parametrize("family", FUSED)
def test_fused_rows_are_called_by_what_attention_does_with_them(family, pico):
    """At position 0 attention sees only itself, so there its output depends on values alone. A query serves only its
    own position, so the last output's gradient by a query row is parallel to the last input; keys see all inputs.
    """
    model = pico(family)
    fused, transposed, parts = rows_of_roles(family, model)
    owner = fused.removesuffix(".weight")
    output = by_role(model, "o_proj")
    seen = {}
    model.get_submodule(owner).register_forward_pre_hook(lambda _, args: seen.__setitem__("input", args[0]))
    hook = model.get_submodule(output.removesuffix(".weight")).register_forward_pre_hook
    hook(lambda _, args: seen.__setitem__("mixed", args[0]))
    model(input_ids=torch.tensor([[5, 9, 77, 31]]))

    def gradient(position):
        target = seen["mixed"][0, position] @ torch.linspace(-1, 1, seen["mixed"].shape[-1])
        found = torch.autograd.grad(target, model.get_parameter(fused), retain_graph=True)[0]
        return found.T if transposed else found

    own = gradient(0).norm(dim=1)
    assert set((own > 1e-5 * own.max()).nonzero().flatten().tolist()) == set(parts["v_proj"].tolist())
    last, x = gradient(3), seen["input"][0, 3].detach()
    beside = (last - (last @ x)[:, None] * x / (x @ x)).norm(dim=1) / last.norm(dim=1)
    assert float(beside[parts["q_proj"]].max()) < 1e-4
    assert float(beside[parts["k_proj"]].min()) > 1e-2


@pytest.mark.parametrize("family", FUSED)
def test_without_its_value_rows_attention_gives_nothing(family, pico):
    model = pico(family)
    fused, transposed, parts = rows_of_roles(family, model)
    owner = model.get_submodule(fused.removesuffix(".weight"))
    with torch.no_grad():
        (owner.weight.T if transposed else owner.weight)[parts["v_proj"]] = 0
        if getattr(owner, "bias", None) is not None:
            owner.bias[parts["v_proj"]] = 0
    seen = {}
    output = by_role(model, "o_proj")
    hook = model.get_submodule(output.removesuffix(".weight")).register_forward_pre_hook
    hook(lambda _, args: seen.__setitem__("mixed", args[0]))
    model(input_ids=torch.tensor([[5, 9, 77, 31]]))
    assert float(seen["mixed"].detach().abs().max()) == 0


@pytest.mark.parametrize("family", ["phi3", "mixtral", "olmoe"])
def test_fused_up_rows_are_the_ones_the_mlp_is_linear_in(family, pico):
    model = pico(family)
    name = by_role(model, "gate_up")
    projection = Anatomy.of(model).projections[name]
    mlp = model.model.layers[0].mlp
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))

    def run(role, factor):
        parts = projection.parts(model.get_parameter(name).data)
        parts[role].mul_(factor)  # views: the model's own weight changes
        out = mlp(x)
        parts[role].div_(factor)
        return out[0] if isinstance(out, tuple) else out

    with torch.no_grad():
        assert torch.allclose(run("up_proj", 2.0), 2 * run("up_proj", 1.0), rtol=1e-4)
        assert not torch.allclose(run("gate_proj", 2.0), 2 * run("gate_proj", 1.0), rtol=1e-2)


@pytest.mark.parametrize("family", FUSED)
def test_fused_parts_add_up_to_the_fused_tensor(family, pico, tuned_from):
    base = pico(family)
    tuned = tuned_from(base)
    fused, _, parts = rows_of_roles(family, base)
    found = compare(in_memory(base, tuned), NORMS)
    energy = sum(found[0, role, "delta_fro"] ** 2 for role in parts)
    change = tuned.get_parameter(fused).detach().double() - base.get_parameter(fused).detach().double()
    assert energy == pytest.approx(float(change.square().sum()), rel=1e-9)


@pytest.mark.parametrize("family", FUSED)
def test_fused_parts_are_measured_as_separate_projections_would_be(family, pico, tuned_from):
    base = pico(family)
    tuned = tuned_from(base)
    fused, transposed, parts = rows_of_roles(family, base)
    found = compare(in_memory(base, tuned))
    before, after = (model.get_parameter(fused).detach().double().numpy() for model in (base, tuned))
    for role, rows in parts.items():
        own, other = ((each.T if transposed else each)[rows] for each in (before, after))
        assert found[0, role, "delta_rel"] == pytest.approx(norms([own], [other])[1], rel=1e-9)
        assert found[0, role, "delta_spectral"] == pytest.approx(np.linalg.norm(other - own, 2), rel=1e-9)


def test_experts_share_a_row_the_largest_norm_and_the_mean_rank(pico, tuned_from):
    base = pico("mixtral")
    tuned = tuned_from(base)
    name = "model.layers.1.mlp.experts.down_proj"
    change = arrays(tuned)[name] - arrays(base)[name]
    found = compare(in_memory(base, tuned))
    sigma = np.linalg.svd(change, compute_uv=False)
    assert len(sigma) == 4
    assert found[1, "down_proj", "delta_fro"] == pytest.approx(np.linalg.norm(change), rel=1e-9)
    assert found[1, "down_proj", "delta_spectral"] == pytest.approx(sigma.max(), rel=1e-9)
    stable = ((sigma**2).sum(1) / sigma[:, 0] ** 2).mean()
    assert found[1, "down_proj", "delta_stable_rank"] == pytest.approx(stable, rel=1e-9)


def adapted(base, saved, tmp_path, **options):
    """A saved base, a saved adapter with random factors on it, and the model it makes by PEFT's own merge."""
    folder = saved(base, "base")
    base.name_or_path = folder
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"} | options)
    model = get_peft_model(base, config)
    torch.manual_seed(1)
    for name, value in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            value.data.normal_()
    model.save_pretrained(tmp_path / "adapter")
    return folder, str(tmp_path / "adapter"), model.merge_and_unload()


ADAPTERS = {
    "separate": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "some_blocks": ("llama", {"target_modules": ["v_proj"], "layers_to_transform": [1]}),
    "fused": ("phi3", {"target_modules": ["qkv_proj", "down_proj"]}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True}),
    "whole_tensors": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("wanted", [WEIGHTS, NORMS | {"delta_spectral", "delta_stable_rank", "delta_effective_rank"}])
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapters_factors_give_what_the_merged_weights_give(name, wanted, pico, saved, tmp_path):
    family, options = ADAPTERS[name]
    folder, adapter, merged = adapted(pico(family), saved, tmp_path, **options)
    found = compare(load_pair(folder, adapter), wanted)
    expected = compare(in_memory(pico(family), merged.float()), wanted)
    # Merged weights are rounded to float32: a change that is no change stays none, ranks gain a trace.
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=2e-3, abs=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_low_rank_delta_is_measured_without_building_a_model(pico, saved, tmp_path):
    folder, adapter, _ = adapted(pico("llama"), saved, tmp_path, target_modules=["q_proj"])
    pair = load_pair(folder, adapter)
    found = compare(pair, WEIGHTS)
    assert pair.tuned[0].loaded is None
    assert found[0, "q_proj", "delta_effective_rank"] <= 4 + 1e-9
    assert found[0, "k_proj", "delta_fro"] == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_as_the_base_counts_with_its_change(pico, saved, tmp_path):
    folder, adapter, merged = adapted(pico("llama"), saved, tmp_path, target_modules=["q_proj"])
    found = compare(load_pair(adapter, folder), NORMS)
    assert found == pytest.approx(compare(in_memory(merged.float(), pico("llama")), NORMS), rel=1e-4, abs=1e-7)
    same = compare(load_pair(adapter, adapter), NORMS)
    assert set(same.values()) == {0.0}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("wanted", [WEIGHTS, NORMS])
def test_an_adapter_on_a_tied_head_changes_the_head_alone(wanted, pico, saved, tmp_path):
    folder = saved(pico("llama_tied"), "base")
    base = pico("llama_tied")
    base.name_or_path = folder
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules=["lm_head"]))
    torch.manual_seed(1)
    layer = model.get_base_model().lm_head
    for factor in (layer.lora_A["default"], layer.lora_B["default"]):
        factor.weight.data.normal_()
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    change = layer.get_delta_weight("default").detach().double()
    notes = []
    found = compare(load_pair(folder, str(tmp_path / "adapter")), wanted, notes=notes)
    assert found[3, "head", "delta_fro"] == pytest.approx(float(change.norm()), rel=1e-6)
    assert {cell: value for cell, value in found.items() if cell[1] != "head" and value} == {}
    assert (-1, "embedding", "delta_fro") in found
    assert notes == []


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_weight_that_is_not_finite_is_named_with_its_owner(llamas, pico, side):
    broken = pico("llama")
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    pair = in_memory(broken, llamas[1]) if side == "base" else in_memory(llamas[0], broken)
    owner = "the base" if side == "base" else "tuned"
    with pytest.raises(MidblockError, match=rf"NaN or Inf in the weight model.layers.1.mlp.up_proj.weight of {owner}"):
        compare(pair)


def test_a_resized_vocabulary_compares_the_shared_rows_and_says_so(pico, tuned_from):
    base, tuned = pico("llama"), pico("llama", vocab_size=310)
    with torch.no_grad():
        tuned.model.embed_tokens.weight[:300] = base.model.embed_tokens.weight
    notes = []
    found = compare(in_memory(base, tuned), NORMS, notes=notes)
    assert found[-1, "embedding", "delta_fro"] == 0
    assert any("300 rows in the base, 310 in tuned: the first 300" in note for note in notes)


def test_another_width_inside_a_block_raises(pico):
    with pytest.raises(MidblockError, match=r"gate_proj.weight is \[48, 32\] in the base and \[40, 32\] in tuned"):
        compare(in_memory(pico("llama"), pico("llama", intermediate_size=40)), NORMS)


def opened(model, name="base"):
    return EffectiveTensors.of_model(model, name)


def test_names_on_disk_may_lack_a_wrapper_part(pico, tuned_from, saved):
    base = pico("gpt2")
    folder, other = saved(base, "base"), saved(tuned_from(base), "tuned")
    file = Path(other) / "model.safetensors"
    bare = {name.removeprefix("transformer."): value for name, value in load_file(file).items()}
    whole = compare(load_pair(folder, other), NORMS)
    save_file(bare, file, metadata={"format": "pt"})
    notes = []
    assert compare(load_pair(folder, other), NORMS, notes=notes) == pytest.approx(whole, rel=0, abs=0, nan_ok=True)
    assert notes == []


def test_a_tensor_only_one_side_has_is_mentioned_unless_it_is_a_head(pico):
    notes = []
    in_both(opened(pico("qwen2")), opened(pico("llama"), "tuned"), notes)
    assert notes == [
        "Only the base has model.layers.0.self_attn.q_proj.bias, model.layers.0.self_attn.k_proj.bias, "
        "model.layers.0.self_attn.v_proj.bias and 6 more: not compared."
    ]
    notes.clear()
    in_both(opened(pico("llama")), opened(pico("llama_tied"), "tuned"), notes)
    assert notes == []


def test_models_without_a_common_name_raise(pico):
    with pytest.raises(MidblockError, match="tuned and the base have no tensor of a block in common"):
        in_both(opened(pico("llama")), opened(pico("gpt2"), "tuned"), [])


def test_progress_hears_of_every_entry(llamas):
    heard = []
    base, tuned = llamas
    pair = in_memory(base, tuned)
    list(WeightComparison(pair.base, pair.tuned[0], 3, NORMS, frozenset(range(-1, 4)), 4).rows(heard.append))
    assert sum(heard) == sum(value.numel() for value in base.parameters())


def test_a_norm_layer_has_norms_of_its_own(llamas):
    base, tuned = llamas
    assert isinstance(base.model.norm, nn.Module)
    found = compare(in_memory(base, tuned))
    change = norms([arrays(base)["model.norm.weight"]], [arrays(tuned)["model.norm.weight"]])[0]
    assert found[3, "norm", "delta_fro"] == pytest.approx(change)
    assert (3, "norm", "delta_spectral") not in found


def test_another_precision_is_mentioned_once(llamas):
    notes = []
    rows_of(in_memory(llamas[0], copy.deepcopy(llamas[1]).bfloat16()), NORMS, notes=notes)
    told = "The base is float32, tuned bfloat16: rounding alone changes weights by up to 2^-8 relative."
    assert notes.count(told) == 1


def test_a_head_that_became_tied_is_mentioned(pico):
    notes = []
    rows_of(in_memory(pico("llama"), pico("llama_tied")), NORMS, notes=notes)
    assert any("no head of its own" in note for note in notes)


def test_progress_ends_though_layers_are_left_out(llamas):
    pair, heard = in_memory(*llamas), []
    list(WeightComparison(pair.base, pair.tuned[0], pair.blocks, NORMS, frozenset({1}), 4).rows(heard.append))
    assert sum(heard) == sum(value.numel() for value in llamas[0].parameters())


# one decoder alone, the other inside a multimodal model


@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "qwen2_5_vl"])
@pytest.mark.parametrize("turned", [False, True], ids=["wrapper first", "text first"])
def test_a_decoder_is_found_inside_a_multimodal_model(kind, turned, wrapped, tuned_from, saved):
    whole, alone = wrapped(kind)
    tuned = tuned_from(alone)
    places = [saved(whole, "whole"), saved(tuned, "alone")]
    notes = []
    found = compare(load_pair(*(reversed(places) if turned else places)), NORMS, notes=notes)
    before, after = (arrays(model) for model in ((tuned, alone) if turned else (alone, tuned)))
    for layer in range(3):
        names = [name for name in before if f".layers.{layer}." in name]
        rel = norms([before[name] for name in names], [after[name] for name in names])[1]
        assert found[layer, "block", "delta_rel"] == pytest.approx(rel, rel=1e-6)
    (note,) = [note for note in notes if note.startswith("Only ")]
    towers = sum("vis" in name or "projector" in name for name, _ in whole.named_parameters())
    assert towers == sum(int(count) for count in note.replace(",", "").split() if count.isdigit())


@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "qwen2_5_vl"])
def test_a_decoder_inside_a_multimodal_model_is_itself(kind, wrapped, saved):
    whole, alone = wrapped(kind)
    found = compare(load_pair(saved(whole, "whole"), saved(alone, "alone")), NORMS)
    assert set(found.values()) == {0.0}
    assert {layer for layer, module, _ in found if module == "block"} == {0, 1, 2}


def test_what_no_model_loads_counts_nowhere_and_is_said_once(pico, tuned_from, saved):
    base = pico("llama")
    folders = [saved(base, "base"), saved(tuned_from(base), "tuned")]
    plain = compare(load_pair(*folders), NORMS)
    for seed, folder in enumerate(folders):
        file = Path(folder) / "model.safetensors"
        names = ("mtp.layers.0.mlp.up_proj.weight", "mtp.norm.weight", "model.layers.3.self_attn.q_proj.weight")
        extra = {name: torch.full((4, 4), float(seed)) for name in names}
        save_file({**load_file(file), **extra}, file, metadata={"format": "pt"})
    notes = []
    assert compare(load_pair(*folders), NORMS, notes=notes) == plain
    assert notes == [
        "3 tensors in the files of base and tuned (2 in mtp.*, 1 in model.layers.3.*) are no part of the model, "
        "transformers does not load them: they are left out."
    ]


def test_what_the_base_has_beside_its_model_is_said_once_for_all(pico, tuned_from, saved):
    base = pico("llama")
    folders = [saved(base, "base"), saved(tuned_from(base), "one"), saved(tuned_from(base, seed=2), "two")]
    file = Path(folders[0]) / "model.safetensors"
    save_file({**load_file(file), "mtp.norm.weight": torch.ones(4)}, file, metadata={"format": "pt"})
    notes = []
    for tuned in folders[1:]:
        compare(load_pair(folders[0], tuned), NORMS, notes=notes)
    assert len(notes) == 1
    assert notes[0].startswith("1 tensor in the files of base (1 in mtp.*) are no part of the model")


# heads that the config and the files tell differently of


def with_head(folder, head):
    file = Path(folder) / "model.safetensors"
    content = {name: value for name, value in load_file(file).items() if name != "lm_head.weight"}
    save_file({**content, **({} if head is None else {"lm_head.weight": head})}, file, metadata={"format": "pt"})


def drawn(seed):
    return torch.randn(300, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_rounding_makes_of_an_adapter_that_peft_merges_is_told(pico, tokenizer, tmp_path, dtype):
    pico("llama").bfloat16().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    adapted = get_peft_model(start, IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=[]))
    for name, value in adapted.named_parameters():
        if "ia3_l" in name:
            value.data.fill_(1.0005)
    adapted.save_pretrained(tmp_path / "ia3")
    notes = []
    pair = load_pair(str(tmp_path / "base"), str(tmp_path / "ia3"), device="cpu", dtype=dtype)
    found = compare(pair, NORMS, notes=notes)
    said = "PEFT merges ia3 in bfloat16, and its weights are read off that: changes below 2^-8 of a weight"
    assert [note.startswith(said) for note in notes] == ([True] if dtype == "bfloat16" else [])
    assert found[0, "q_proj", "delta_rel"] == pytest.approx(0 if dtype == "bfloat16" else 0.0005, rel=1e-3)


@pytest.mark.parametrize("moved", [True, False])
def test_two_adapters_that_untie_one_tied_model_differ_in_the_head(pico, tokenizer, tmp_path, moved):
    pico("llama_tied").save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    heads = {}
    for name, saved_whole in {"one": [], "other": ["lm_head"]}.items():
        start = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["embed_tokens"], modules_to_save=saved_whole)
        adapted = get_peft_model(start, config)
        stream = torch.Generator().manual_seed(3)
        for key, value in adapted.named_parameters():
            if "lora" in key:
                value.data.normal_(std=0.1, generator=stream)
            elif "modules_to_save" in key and moved:
                value.data.add_(0.1)
        heads[name] = adapted.get_output_embeddings().weight.detach().clone()
        adapted.save_pretrained(tmp_path / name)
    found = compare(load_pair(str(tmp_path / "one"), str(tmp_path / "other"), device="cpu"), NORMS)
    expected = float((heads["other"] - heads["one"]).norm() / heads["one"].norm())
    assert (expected > 0.1) == moved
    assert found[3, "head", "delta_rel"] == pytest.approx(expected, rel=1e-5)
    assert found[-1, "embedding", "delta_rel"] == 0


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
@pytest.mark.parametrize("which", [(1, 2), (1, None), (None, 2), (1, 1)], ids=str)
def test_a_tied_models_own_head_is_the_head(which, shard, pico, tuned_from, tokenizer, tmp_path):
    base = pico("llama_tied")
    models = (base, tuned_from(base))
    heads = []
    for name, model, seed in zip(("base", "tuned"), models, which, strict=True):
        head = drawn(seed) if seed else model.get_input_embeddings().weight.detach().clone()
        content = {**model.state_dict(), "lm_head.weight": head} if seed else model.state_dict()
        model.save_pretrained(tmp_path / name, state_dict=content, max_shard_size=shard)
        tokenizer.save_pretrained(tmp_path / name)
        heads.append(head.double().numpy())
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert torch.equal(loaded.lm_head.weight.double(), torch.from_numpy(heads[-1]))
    notes = []
    found = compare(load_pair(str(tmp_path / "base"), str(tmp_path / "tuned")), NORMS, notes=notes)
    if which[1] is None:
        assert (3, "head", "delta_rel") not in found
        assert any("no head of its own, it is tied" in note for note in notes)
    else:
        assert found[3, "head", "delta_rel"] == pytest.approx(norms(heads[:1], heads[1:])[1], rel=1e-9)


@pytest.mark.parametrize(("top", "inner"), [(True, False), (False, True)], ids=["top says tied", "inside says tied"])
def test_a_multimodal_models_head_is_what_transformers_makes_it(top, inner, wrapped, tuned_from, saved):
    whole, _ = wrapped("gemma3")
    folders = [saved(model, name) for model, name in ((whole, "base"), (tuned_from(whole), "tuned"))]
    for folder in folders:
        file = Path(folder) / "config.json"
        config = json.loads(file.read_text())
        config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"] = top, inner
        file.write_text(json.dumps(config))
        if top:
            path = Path(folder) / "model.safetensors"
            content = {name: value for name, value in load_file(path).items() if "lm_head" not in name}
            save_file(content, path, metadata={"format": "pt"})
    loaded = [AutoModelForCausalLM.from_pretrained(folder) for folder in folders]
    tied = [model.lm_head.weight is model.get_input_embeddings().weight for model in loaded]
    assert tied == [top, top]
    found = compare(load_pair(*folders), NORMS)
    if top:
        assert (3, "head", "delta_rel") not in found
    else:
        heads = [model.lm_head.weight.detach().double().numpy() for model in loaded]
        assert found[3, "head", "delta_rel"] == pytest.approx(norms(heads[:1], heads[1:])[1], rel=1e-9)


def test_a_head_that_is_neither_stored_nor_tied_is_said(pico, tuned_from, saved):
    base = pico("llama")
    folders = [saved(base, "base"), saved(tuned_from(base), "tuned")]
    with_head(folders[1], None)
    notes = []
    found = compare(load_pair(*folders), NORMS, notes=notes)
    assert (3, "head", "delta_rel") not in found
    assert notes == ["The files of tuned hold no head, and its config ties none: heads are not compared."]


def test_a_tied_model_may_store_its_embedding_as_the_head(pico, tuned_from, saved):
    base = pico("llama_tied")
    folders = [saved(base, "base"), saved(tuned_from(base), "tuned")]
    plain = compare(load_pair(*folders), NORMS)
    file = Path(folders[1]) / "model.safetensors"
    content = load_file(file)
    content["lm_head.weight"] = content.pop("model.embed_tokens.weight")
    save_file(content, file, metadata={"format": "pt"})
    assert compare(load_pair(*folders), NORMS) == plain


# quantised models


def in_float8(folder, times=1.0, side=16):
    """Store a model's block weights as float8 with scales for blocks; give what they mean, in plain torch."""
    file, made, meant = Path(folder) / "model.safetensors", {}, {}
    for name, value in load_file(file).items():
        made[name] = meant[name] = value
        if value.ndim == 2 and ".layers." in name:
            parts = value.mul(times).unflatten(0, (-1, side)).unflatten(2, (-1, side))
            scale = parts.abs().amax((1, 3), keepdim=True) / 448
            codes = (parts / scale).to(torch.float8_e4m3fn)
            made[name], made[f"{name}_scale_inv"] = codes.reshape(value.shape), scale[:, 0, :, 0].contiguous()
            meant[name] = (codes.float() * scale).reshape(value.shape)
    save_file(made, file, metadata={"format": "pt"})
    return {name: value.double().numpy() for name, value in meant.items()}


@pytest.mark.parametrize("quantised", [(False, True), (True, False), (True, True)], ids=str)
def test_float8_models_are_compared_as_their_weights(quantised, pico, tuned_from, saved):
    base = pico("llama")
    folders = [saved(base, "base"), saved(tuned_from(base), "tuned")]
    values = [
        in_float8(folder)
        if codes
        else {n: v.double().numpy() for n, v in load_file(folder + "/model.safetensors").items()}
        for folder, codes in zip(folders, quantised, strict=True)
    ]
    notes = []
    found = compare(load_pair(*folders), NORMS, notes=notes)
    for layer in range(3):
        names = [name for name in values[0] if f".layers.{layer}." in name]
        rel = norms([values[0][name] for name in names], [values[1][name] for name in names])[1]
        assert found[layer, "block", "delta_rel"] == pytest.approx(rel, rel=1e-6)
    said = [note for note in notes if "stores 21 weights as float8_e4m3fn" in note and "2^-4" in note]
    assert len(said) == len(notes) == sum(quantised)


def test_a_float8_model_does_not_differ_from_itself(pico, saved):
    folders = [saved(pico("llama"), name) for name in ("base", "tuned")]
    for folder in folders:
        in_float8(folder)
    assert set(compare(load_pair(*folders), NORMS).values()) == {0.0}


def test_codes_of_an_unknown_kind_are_refused(pico, saved):
    folders = [saved(pico("llama"), name) for name in ("base", "tuned")]
    file = Path(folders[1]) / "model.safetensors"
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**load_file(file), name: torch.zeros(48, 32, dtype=torch.int8)}, file, metadata={"format": "pt"})
    with pytest.raises(MidblockError, match=rf"tuned stores {name} as codes \(int8\)"):
        compare(load_pair(*folders), NORMS)
