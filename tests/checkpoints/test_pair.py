import pytest
import torch
from peft import LoraConfig, get_peft_model

from midblock.base import MidblockError
from midblock.checkpoints import Pair, load_pair


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
    assert names[:2] == [sft, other]
    assert [variant.name for variant in load_pair(first, sft, called_base).tuned] == ["sft", called_base]


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
