"""Models that accelerate offloads or spreads give what whole ones give, or one line: never numbers of empty places."""

import copy

import pandas as pd
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import nn
from transformers import AutoModelForCausalLM

import midblock
from midblock.base import MidblockError
from midblock.carriers.rivals import Rival, Scattered, put_rival
from midblock.checkpoints import Anatomy, Carrier, CarrierConfig, Entries, Pair, apply_carrier
from midblock.checkpoints.anatomy import device_of
from midblock.checkpoints.offloaded import held_value
from midblock.data import load_dataset
from midblock.evaluation.evaluate.forgetting import weight_drift
from midblock.interventions.merge.blended import Blended
from midblock.studies.recommend.rival_weights import spectrum_snr

OPTIONS = {"num_samples": 8, "batch_tokens": 100}
DATA = load_dataset("builtin:chain_sum", num_samples=8)
WEIGHT = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module", params=["llama", "llama_tied"])
def both(request, pico, tuned_from):
    base = pico(request.param)
    return base, tuned_from(base)


@pytest.fixture(params=["cpu", "disk"])
def offload(request, tmp_path):
    """Takes a copy of a model and lets accelerate keep its weights."""

    def of(model: nn.Module) -> nn.Module:
        kept = copy.deepcopy(model)
        if request.param == "cpu":
            cpu_offload(kept, execution_device=torch.device("cpu"))
        else:
            disk_offload(kept, str(tmp_path / f"offloaded{len(list(tmp_path.iterdir()))}"))
        assert all(value.is_meta for value in kept.parameters())
        return kept

    return of


def verbs():
    return {
        "analyze": lambda pair, data: midblock.analyze(
            pair, data, **OPTIONS, num_token_samples=4, metrics="standard", precision_floor=False
        ),
        "probe": lambda pair, data: midblock.probe(
            pair, data, **OPTIONS, generate=True, generate_samples=2, max_new_tokens=3
        ),
        "swap": lambda pair, data: midblock.swap(pair, data, **OPTIONS, segments="each"),
    }  # fmt: skip


@pytest.mark.parametrize("verb", verbs())
def test_a_verb_finds_what_it_finds_of_whole_models(both, tokenizer, offload, verb):
    base, tuned = both
    whole = verbs()[verb](Pair.of_models(base, {"sft": tuned}, tokenizer), DATA)
    found = verbs()[verb](Pair.of_models(offload(base), {"sft": offload(tuned)}, tokenizer), DATA)
    pd.testing.assert_frame_equal(found.frame, whole.frame, check_exact=True)


@pytest.mark.parametrize("part", ["lm_head", "model.norm", "model.embed_tokens", "model.layers.1.mlp.down_proj"])
def test_one_part_may_be_offloaded_alone(both, tokenizer, part):
    whole = verbs()["analyze"](Pair.of_models(both[0], {"sft": both[1]}, tokenizer), DATA)
    kept = [copy.deepcopy(model) for model in both]
    for model in kept:
        cpu_offload(model.get_submodule(part), execution_device=torch.device("cpu"))
    found = verbs()["analyze"](Pair.of_models(kept[0], {"sft": kept[1]}, tokenizer), DATA)
    pd.testing.assert_frame_equal(found.frame, whole.frame, check_exact=True)


def test_a_map_with_blocks_on_the_disk(both, tokenizer, tmp_path):
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu"}
    tied = both[0].config.tie_word_embeddings  # accelerate runs no tied head from the disk
    places["lm_head"] = "cpu" if tied else "disk"
    places |= {f"model.layers.{block}": "disk" if block else "cpu" for block in range(3)}
    kept = []
    for name, model in zip(("base", "sft"), both, strict=True):
        model.save_pretrained(tmp_path / name)
        options = {"device_map": places, "offload_folder": str(tmp_path / f"{name}-off"), "dtype": torch.float32}
        kept.append(AutoModelForCausalLM.from_pretrained(tmp_path / name, **options).eval())
    assert kept[0].get_parameter(WEIGHT).is_meta
    for verb in ("analyze", "swap"):
        whole = verbs()[verb](Pair.of_models(both[0], {"sft": both[1]}, tokenizer), DATA)
        found = verbs()[verb](Pair.of_models(kept[0], {"sft": kept[1]}, tokenizer), DATA)
        pd.testing.assert_frame_equal(found.frame, whole.frame, check_exact=True)


def test_values_are_those_of_the_model_that_was_offloaded(both, offload):
    base, tuned = both
    kept = offload(tuned)
    for name, value in tuned.named_parameters():
        assert torch.equal(held_value(kept, name), value), name
    assert all(value.is_meta for value in kept.parameters())
    assert device_of(Anatomy.of(kept).blocks[0]) == torch.device("cpu")
    assert weight_drift(offload(base), kept) == weight_drift(base, tuned) > 0
    assert spectrum_snr(kept) == spectrum_snr(tuned)


def test_what_would_be_written_into_nothing_is_refused(both, offload):
    base, tuned = both
    kept = offload(base)
    shape = tuple(base.get_parameter(WEIGHT).shape)
    entries = Entries((torch.tensor([0]), torch.tensor([1])), torch.ones(1, 1))
    carrier = Carrier(CarrierConfig("start", "0" * 64, "llama", "sft", "1" * 64, {WEIGHT: shape}), {WEIGHT: entries})
    single = Scattered(shape, torch.tensor([0]), torch.ones(1), torch.zeros(1))
    with pytest.raises(MidblockError, match=f"{WEIGHT} is not in memory"), apply_carrier(kept, carrier):
        pass
    with (
        pytest.raises(MidblockError, match="is not in memory, and cannot be written"),
        put_rival(kept, Rival("pruned", 8, 1.0, {WEIGHT: single})),
    ):
        pass
    with pytest.raises(MidblockError, match="weights cannot be blended in memory"):
        Blended.of(base, offload(tuned))


def test_a_model_without_weights_is_told(both):
    empty = copy.deepcopy(both[0]).to("meta")
    with pytest.raises(MidblockError, match=f"{WEIGHT} has no values: it is on the meta device"):
        held_value(empty, WEIGHT)
