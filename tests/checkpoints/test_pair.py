import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from midblock.base import MidblockError
from midblock.checkpoints import Pair, load_models, load_pair, opening
from midblock.checkpoints.models import pick_device


def test_a_pair_from_disk_loads_nothing_before_it_is_needed(pico, tuned_from, saved, tokenizer):
    base = pico("llama")
    pair = load_pair(str(saved(base, "start")), str(saved(tuned_from(base), "sft")), device="cpu")
    assert [variant.name for variant in pair] == ["base", "sft"]
    assert (pair.blocks, pair.vocabulary) == (3, 300)
    assert [variant.loaded for variant in pair] == [None, None]
    assert torch.equal(pair.base.model.lm_head.weight, base.lm_head.weight)
    assert pair.base.model is pair.base.loaded
    assert pair.notes() == []
    assert pair.tokenizer.get_vocab() == pair.other_tokenizers["sft"].get_vocab() == tokenizer.get_vocab()


def test_names_are_unique_and_never_base(pico, saved):
    folders = [saved(pico("llama"), name) for name in ("start", "sft", "a/sft", "base")]
    first, sft, other, called_base = map(str, folders)
    names = [variant.name for variant in load_pair(first, sft, other, sft, called_base).tuned]
    assert len(set(names)) == 4
    assert "base" not in names
    assert load_pair(first, called_base).notes() == [f"{called_base} is called base (tuned) in tables and figures."]
    assert load_pair(first, sft).notes() == []
    assert [variant.name for variant in load_models(called_base)] == ["base (alone)"]
    assert names[:2] == [sft, other]
    assert [variant.name for variant in load_pair(first, sft, called_base).tuned] == ["sft", "base (tuned)"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 5}, "^deep has 5 decoder blocks, the base 3 .*same base"),
        ({"hidden_size": 64}, "^deep has 64 channels, the base 32 .*same base"),
    ],
)
def test_other_depth_or_width(pico, saved, tokenizer, changes, message):
    base, other = pico("llama"), pico("llama", **changes)
    with pytest.raises(MidblockError, match=message):
        Pair.of_models(base, {"ok": base, "deep": other}, tokenizer)
    with pytest.raises(MidblockError, match=message):
        load_pair(str(saved(base, "start")), str(saved(other, "deep")))


def test_resized_vocabularies_share_the_smallest(pico, tuned_from, tokenizer):
    base = pico("llama")
    more = tuned_from(base)
    more.resize_token_embeddings(305)
    pair = Pair.of_models(base, {"more": more, "same": tuned_from(base)}, tokenizer)
    assert pair.vocabulary == 300
    assert pair.notes() == [
        "Vocabularies differ in size (base 300, more 305, same 300): the 300 shared rows are compared."
    ]


def test_nothing_to_compare_with(pico, saved):
    with pytest.raises(MidblockError, match="no tuned model given"):
        load_pair(str(saved(pico("llama"), "start")))


def test_an_unknown_option_gets_the_nearest():
    with pytest.raises(MidblockError, match=r"unknown option 'divice' .*did you mean 'device'"):
        load_pair("a", "b", divice="cpu")


def test_an_adapter_goes_on_the_base_it_is_compared_with(pico, saved, tmp_path):
    model = pico("llama")
    model.name_or_path = "somebody/elsewhere"
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    base = saved(pico("llama"), "start")
    pair = load_pair(str(base), str(tmp_path / "adapter"), device="cpu")
    assert pair.notes() == [
        f"The adapter adapter names somebody/elsewhere as its base; it was put on {base}, as asked."
    ]
    before, after = (variant.model.state_dict() for variant in pair)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{block}.self_attn.q_proj.weight" for block in range(3)}


def test_a_variant_of_nothing(pico, tokenizer):
    pair = Pair.of_models(pico("llama"), {"sft": pico("llama")}, tokenizer)
    assert pair.base.reference == "in memory"
    pair.base.loaded = None
    with pytest.raises(MidblockError, match="base has neither a model nor a checkpoint"):
        pair.base.model  # noqa: B018


def adapter_of(pico, folder, named):
    model = pico("llama")
    model.name_or_path = named
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(folder)
    return str(folder)


def test_a_hub_adapter_goes_on_the_base_it_is_compared_with(pico, saved, tmp_path, monkeypatch):
    folder = Path(adapter_of(pico, tmp_path / "snapshot", "somebody/elsewhere"))
    monkeypatch.setattr("midblock.checkpoints.checkpoint.hub_folder", lambda reference, **consent: folder)
    base = saved(pico("llama"), "start")
    tuned = load_pair(str(base), "org/lora", device="cpu").tuned[0]
    assert tuned.checkpoint.folder == base


def test_an_adapter_of_this_base_under_another_spelling_needs_no_note(pico, saved, tmp_path):
    base = saved(pico("llama"), "start")
    adapter = adapter_of(pico, tmp_path / "adapter", str(base))
    assert load_pair(f"{base}/../start", adapter).notes() == []


def test_adapters_compared_with_an_adapter_stay_on_their_own_base(pico, saved, tmp_path):
    base = saved(pico("llama"), "start")
    one, two = (adapter_of(pico, tmp_path / name, str(base)) for name in ("one", "two"))
    both = load_pair(one, two)
    assert both.tuned[0].checkpoint.folder == base
    assert both.notes() == []


def test_every_variant_runs_in_the_bases_precision(pico, saved, monkeypatch):
    base, sft = str(saved(pico("llama").bfloat16(), "start")), str(saved(pico("llama"), "sft"))
    for device, dtype in (("cpu", "float32"), ("meta", "bfloat16")):  # meta stands for an accelerator
        if device == "meta":
            monkeypatch.setattr(opening, "pick_device", torch.device)
        settings = {(variant.loading.device, variant.loading.dtype) for variant in load_pair(base, sft, device=device)}
        assert settings == {(device, dtype)}
    monkeypatch.setattr(opening, "pick_device", pick_device)
    auto = load_pair(base, sft).base.loading
    assert auto.device == str(pick_device("auto"))
    monkeypatch.setattr(opening, "pick_device", lambda device: torch.device("meta"))
    mapped = load_pair(base, sft, device_map="auto").tuned[0].loading
    assert (mapped.device, mapped.dtype) == ("auto", "bfloat16")
    assert load_pair(base, sft, dtype="float16").tuned[0].loading.dtype == "float16"


def test_a_config_without_a_dtype_takes_the_weights(pico, saved, monkeypatch):
    monkeypatch.setattr(opening, "pick_device", torch.device)
    base = saved(pico("llama").bfloat16(), "start")
    config = json.loads((base / "config.json").read_text())
    del config["dtype"]
    (base / "config.json").write_text(json.dumps(config))
    assert load_pair(str(base), str(base), device="meta").base.loading.dtype == "bfloat16"


def test_a_tuned_model_without_a_tokenizer(pico, saved, tmp_path):
    base = saved(pico("llama"), "start")
    pico("llama").save_pretrained(tmp_path / "bare")
    bare = load_pair(str(base), str(tmp_path / "bare"), device="cpu")
    assert bare.other_tokenizers == {}
    assert bare.notes() == ["bare ships no tokenizer: the base's was used."]
    with pytest.raises(MidblockError, match="no tokenizer in"):
        load_pair(str(tmp_path / "bare"), str(base)).tokenizer  # noqa: B018


def test_a_model_that_peft_wraps(pico, tokenizer):
    wrapped = get_peft_model(pico("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(MidblockError, match=r"^sft is wrapped by PEFT \(call merge_and_unload\(\) first\)"):
        Pair.of_models(pico("llama"), {"sft": wrapped}, tokenizer)


def test_a_lone_model_keeps_its_name(pico, saved, tokenizer):
    alone = load_models(str(saved(pico("llama"), "mine")), device="cpu")
    assert [variant.name for variant in alone] == ["mine"]
    assert (alone.tuned, alone.blocks, alone.vocabulary, alone.notes()) == ((), 3, 300, [])
    assert alone.base.loaded is None
    assert (alone.base.loading.dtype, alone.base.loading.device) == ("float32", "cpu")
    assert alone.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert alone.other_tokenizers == {}
    assert torch.equal(alone.base.model.lm_head.weight, pico("llama").lm_head.weight)


def test_models_in_company_are_a_pair(pico, tuned_from, saved):
    base = pico("llama")
    folders = str(saved(base, "start")), str(saved(tuned_from(base), "sft"))
    models, other = load_models(*folders, device="cpu"), load_pair(*folders, device="cpu")
    assert [variant.name for variant in models] == [variant.name for variant in other] == ["base", "sft"]
    assert [variant.as_record()["role"] for variant in models] == ["base", "tuned"]
    deep = str(saved(pico("llama", num_hidden_layers=5), "deep"))
    with pytest.raises(MidblockError, match=r"^deep has 5 decoder blocks, the base 3 .*same base"):
        load_models(folders[0], deep)
    with pytest.raises(MidblockError, match=r"unknown option 'divice' .*did you mean 'device'"):
        load_models(folders[0], divice="cpu")


def test_a_lone_adapter_stays_on_its_own_base(pico, saved, tmp_path):
    base = saved(pico("llama"), "start")
    alone = load_models(adapter_of(pico, tmp_path / "adapter", str(base)), device="cpu")
    assert (alone.base.name, alone.base.checkpoint.folder) == ("adapter", base)


def test_files_tell_a_change_of_the_weights(pico, tuned_from, saved, tokenizer, tmp_path):
    base = saved(pico("llama"), "start")
    adapter = adapter_of(pico, tmp_path / "adapter", str(base))
    start, put_on = load_pair(str(base), adapter, device="cpu")
    assert [name for name, _, _ in start.files()] == ["model.safetensors"]
    assert {name for name, _, _ in put_on.files()} == {
        "model.safetensors", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    before = start.files(), put_on.files()
    assert before == (start.files(), put_on.files())
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    assert (start.files() == before[0], put_on.files() == before[1]) == (True, False)
    saved(tuned_from(pico("llama")), "start")  # of the same size
    assert start.files() != before[0]
    memory = Pair.of_models(pico("llama"), {"sft": pico("llama")}, tokenizer)
    assert [variant.files() for variant in memory] == [[], []]


@pytest.mark.parametrize("name", ["base", "base, rounded", "a\nb", ""])
def test_a_name_in_memory_that_tables_do_not_take_is_refused(pico, tokenizer, name):
    base = pico("llama")
    with pytest.raises(MidblockError, match=r"^a tuned model cannot be called .* \(.* would do\)$"):
        Pair.of_models(base, {name: base}, tokenizer)
