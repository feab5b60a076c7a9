"""Requests: settings as YAML, files as fingerprints, and what waits for the data."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import yaml

from midblock.checkpoints import LoadSettings, Pair, load_pair
from midblock.data import load_dataset
from midblock.runs.reading import DataSettings, ReadingSettings
from midblock.runs.request import DATA, Draft, Request, as_config, draft_of, models_of, weights_of


@pytest.fixture
def pair(tmp_path, pico, tuned_from, tokenizer):
    base = pico("llama")
    for model, name in ((base, "start"), (tuned_from(base), "sft")):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return load_pair(str(tmp_path / "start"), str(tmp_path / "sft"))


@dataclass(frozen=True, kw_only=True)
class Own(ReadingSettings):
    FOLLOWED_BY: ClassVar = {"split": ("depth", "mode"), "mode": (), "batch_tokens": ("seed",)}

    depth: int = 1
    mode: tuple[str, ...] = ("a", "b")


def test_settings_become_yaml_in_the_order_of_their_fields():
    config = as_config(DataSettings(), LoadSettings())
    assert list(config)[:5] == ["split", "num_samples", "max_length", "template", "seed"]
    assert list(config)[5:] == ["dtype", "device", "device_map", "attn_implementation", "max_memory", "allow_pickle",
                                "trust_remote_code"]  # fmt: skip


def test_options_of_a_verb_may_stand_among_those_it_shares():
    assert list(as_config(Own())) == ["split", "depth", "mode", "num_samples", "max_length", "template", "region",
                                      "batch_tokens", "seed"]  # fmt: skip
    assert as_config(Own())["mode"] == ["a", "b"]


def test_a_request_reads_back_from_its_yaml():
    request = Request("analyze", {"base": "é", "tuned": ["b"], "layers": "01100", "split": None, "rate": 1e-5})
    assert yaml.safe_load(request.as_yaml()) == request.config
    assert list(yaml.safe_load(request.as_yaml())) == list(request.config)


def test_a_draft_names_models_data_and_settings(pair):
    draft = draft_of("analyze", pair, "builtin:chain_sum", Own(), pair.base.loading, undecided=["split"])
    config = draft.known.config
    assert list(config)[:4] == ["base", "tuned", "data", "split"]
    assert config["tuned"] == [pair.tuned[0].reference]
    assert config["dtype"] == "float32"
    assert draft.undecided == {"split"}
    assert draft.known.inputs == weights_of(pair)
    assert set(draft.known.inputs) == {"the weights of base", "the weights of sft"}
    assert set(pair.places) <= set(draft.known.sources)


def test_models_may_be_named_otherwise_and_data_may_be_missing(pair):
    draft = draft_of("merge", pair, None, models={"base": "a", "tuned": "b", "alphas": "1"}, inputs={"more": 1})
    assert draft.known.config == {"base": "a", "tuned": "b", "alphas": "1"}
    assert draft.known.inputs == weights_of(pair) | {"more": 1}


def test_what_was_undecided_is_decided_once_the_data_is_read(pair):
    draft = draft_of("analyze", pair, "builtin:chain_sum", Own(), undecided=["split"])
    request = draft.decided({DATA: "abc"}, split="test")
    assert request.config["split"] == "test"
    assert list(request.config) == list(draft.known.config)
    assert request.inputs[DATA] == "abc"
    assert request.inputs.items() >= draft.known.inputs.items()
    assert draft.known.config["split"] is None


def test_models_in_memory_have_no_fingerprint(pico, tuned_from, tokenizer):
    base = pico("llama")
    pair = Pair.of_models(base, {"sft": tuned_from(base)}, tokenizer)
    draft = draft_of("probe", pair, load_dataset("builtin:chain_sum", num_samples=4), Own())
    assert draft.known.in_memory == ("base", "sft")
    assert "data" not in draft.known.config
    assert list(draft.known.inputs) == [DATA]


def test_a_file_of_data_is_a_source(pair, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"text": "a"}\n')
    assert file in draft_of("probe", pair, str(file), Own()).known.sources


def test_a_complete_request_is_a_draft_with_nothing_open():
    assert Draft(Request("tune", {})).undecided == frozenset()


def test_models_are_described_as_they_were_loaded(pair):
    described = models_of(pair)
    assert [(each["name"], each["role"]) for each in described] == [("base", "base"), ("sft", "tuned")]
    assert all(len(each["weight_hash"]) == 64 for each in described)
    (alone,) = models_of(Pair(pair.base, ()))
    assert "role" not in alone
    assert alone["reference"] == pair.base.reference
