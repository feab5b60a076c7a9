"""Effective tensors against PEFT's own merged model, for every family and every kind of adapter."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from midblock.checkpoints import Anatomy, EffectiveTensors, exact_rows, open_checkpoint

from ..conftest import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

MIXTURES = ("mixtral", "olmoe", "qwen3_moe")
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
KINDS = {
    "low_rank": {"target_modules": "all-linear"},
    "rslora": {"target_modules": "all-linear", "use_rslora": True, "rank_pattern": {r".*\.1\..*": 2}},
    "dora": {"target_modules": ["ATTENTION"], "use_dora": True},
    "embedding": {"target_modules": ["EMBEDDING"]},
    "dora_embedding": {"target_modules": ["EMBEDDING"], "use_dora": True},
    "head": {"target_modules": ["HEAD"]},
    "saved": {"target_modules": "all-linear", "modules_to_save": ["HEAD", "NORM"]},
    "biases": {"target_modules": "all-linear", "bias": "all"},
    "experts": {"target_modules": [], "target_parameters": EXPERTS, "rank_pattern": {"gate_up_proj": 3}},
    "one_of_the_experts": {"target_modules": "all-linear", "target_parameters": EXPERTS[1:]},
}


def own_head(model):
    """The model with a head apart from its embedding, so that PEFT's merge of one leaves the other."""
    model.get_output_embeddings().weight = nn.Parameter(model.get_output_embeddings().weight.detach().clone())
    return model


def output_of_attention(model):
    """The path of the first block's output projection."""
    found = Anatomy.of(model).projections.values()
    return next(each.name for each in found if each.role == "o_proj").removesuffix(".weight")


@pytest.fixture
def adapted(saved, pico, tmp_path):
    """Save a base and an adapter with random factors; give the checkpoint and PEFT's merged model."""

    def make(family, **options):
        folder = saved(pico(family), "base")
        model = own_head(AutoModelForCausalLM.from_pretrained(folder))
        names, last = Anatomy.of(model).names, lambda path: path.rpartition(".")[2]
        real = {"EMBEDDING": last(names["embedding"]), "HEAD": last(names["head"]), "NORM": names["final_norm"]}
        real["ATTENTION"] = last(output_of_attention(model))
        for key in ("target_modules", "modules_to_save"):
            if isinstance(options.get(key), list):
                options[key] = [real.get(each, each) for each in options[key]]
        model.name_or_path = str(folder)
        given = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", "fan_in_fan_out": family == "gpt2", **options}
        tuned = get_peft_model(model, LoraConfig(**given))
        torch.manual_seed(1)
        for value in tuned.parameters():
            if value.requires_grad:
                value.data.add_(0.3 * torch.randn_like(value))
        tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        fresh = PeftModel.from_pretrained(own_head(AutoModelForCausalLM.from_pretrained(folder)), tmp_path / "adapter")
        return open_checkpoint(str(tmp_path / "adapter")), fresh.merge_and_unload()

    return make


@pytest.mark.parametrize(
    ("kind", "family"),
    [(kind, family) for kind in KINDS for family in (MIXTURES if kind.endswith("experts") else sorted(FAMILIES))],
)
def test_every_tensor_is_that_of_pefts_merged_model(kind, family, adapted, pico):
    checkpoint, merged = adapted(family, **copy.deepcopy(KINDS[kind]))
    base, expected = dict(pico(family).state_dict()), dict(merged.named_parameters())
    with EffectiveTensors.of_checkpoint(checkpoint) as found:
        moved = {name for name, value in expected.items() if not torch.equal(value, base[name])}
        assert moved
        for name in found.names:
            torch.testing.assert_close(found.read(name).float(), expected[name], rtol=1e-5, atol=1e-5)
        assert moved <= set(found.names)
        left = {name for name in expected if name not in found.names}
        assert left == ({found.head} if found.tied else set())


def test_without_an_adapter_it_is_the_model(family, saved, pico):
    model = pico(family)
    parameters, loaded = dict(model.named_parameters()), EffectiveTensors.of_model(model, "loaded")
    with EffectiveTensors.of_checkpoint(open_checkpoint(str(saved(model, "base")))) as found:
        assert set(found.names) == set(loaded.names) == set(parameters)
        assert all(torch.equal(found.read(name), value) for name, value in parameters.items())
        assert found.tied == loaded.tied == (found.head not in parameters)
        for piece in found.stored_pieces:
            assert torch.equal(loaded.like(found, piece).value(), found.source(piece).value())
        for piece in loaded.stored_pieces:
            assert torch.equal(found.like(loaded, piece).value(), loaded.source(piece).value())


@pytest.mark.parametrize("family", MIXTURES)
def test_each_experts_change_stays_low_rank_in_its_piece(family, adapted):
    checkpoint, _ = adapted(family, **KINDS["experts"])
    with EffectiveTensors.of_checkpoint(checkpoint) as found:
        experts = [piece for piece in found.stored_pieces if ".experts." in piece.stored]
        assert len(experts) == 3 * 4 * 3
        for piece in experts:
            source = found.source(piece)
            assert source.low_rank is not None
            assert source.low_rank.rank == (3 if "gate_up" in piece.name else 4)
            exact = torch.cat([rows for _, rows in exact_rows(source, entries=100)])
            torch.testing.assert_close(exact, source.value(), rtol=1e-12, atol=1e-12)


def test_a_tied_head_is_the_embedding_until_one_changes(adapted):
    for kind, tied in (("low_rank", True), ("head", False), ("embedding", False)):
        checkpoint, _ = adapted("llama_tied", **KINDS[kind])
        with EffectiveTensors.of_checkpoint(checkpoint) as found:
            assert found.tied is tied
            assert (found.head in found.names) is not tied
