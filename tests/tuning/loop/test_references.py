"""Where p_ref comes from, and what is said where there is none."""

import pytest
import torch

from midblock.base import LayerPlan, MidblockError
from midblock.checkpoints import LoadSettings, open_checkpoint
from midblock.data.batches import IGNORED
from midblock.tuning.loop.references import check_reference, find_reference
from midblock.tuning.loop.scoring import scoring
from midblock.tuning.loop.tune_settings import TuneSettings
from midblock.tuning.losses import LOSSES
from midblock.tuning.place.prepared import prepare
from midblock.tuning.prefix.prefix import FrozenPrefix

CPU = torch.device("cpu")
LOADING = LoadSettings(device="cpu", dtype="float32")
IDS = torch.tensor([[5, 9, 120, 33, 7, 250, 41, 8, 99, 17]])
PLAIN = sorted(name for name, loss in LOSSES.items() if not (loss.reference or loss.divergence))
COMPARING = sorted(set(LOSSES) - set(PLAIN))


def ready(llama, **options):
    settings = TuneSettings(layers="010", **options)
    return prepare(open_checkpoint(str(llama)), LayerPlan.parse("010", 3), settings, LOADING), settings


def found(llama, **options):
    prepared, settings = ready(llama, **options)
    return prepared, find_reference(prepared, settings, LOADING, CPU)


@pytest.fixture
def other(pico, tuned_from, tmp_path):
    """Another model of the same vocabulary."""
    tuned_from(pico("llama")).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def log_probs(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits[0, :-1].log_softmax(-1).gather(-1, IDS[0, 1:, None])[:, 0]


def test_which_losses_compare():
    assert PLAIN == ["dft", "eaft", "nll"]
    assert COMPARING == ["iw", "iw_published", "kl", "stm"]


@pytest.mark.parametrize("loss", PLAIN)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_losses_that_compare_with_nothing_have_no_reference(llama, loss, method):
    check_reference(TuneSettings(loss=loss, method=method), "org/base")
    assert found(llama, loss=loss, method=method)[1] is None


@pytest.mark.parametrize("loss", COMPARING)
def test_full_tuning_has_no_base_to_ask(loss):
    with pytest.raises(MidblockError) as caught:
        check_reference(TuneSettings(loss=loss, method="full"), "org/base")
    assert f"--loss {loss} compares with a reference" in caught.value.what
    assert caught.value.hint.startswith("--reference org/base loads it a second time")
    check_reference(TuneSettings(loss=loss, method="full", reference="org/base"), "org/base")
    check_reference(TuneSettings(loss=loss), "org/base")


@pytest.mark.parametrize("loss", PLAIN)
def test_a_reference_that_is_not_used_is_refused(loss):
    with pytest.raises(MidblockError, match=rf"the loss {loss} uses no reference .leave out --reference"):
        check_reference(TuneSettings(loss=loss, reference="org/base"), "org/base")


@pytest.mark.parametrize("loss", COMPARING)
def test_with_adapters_the_base_itself_serves(llama, loss):
    prepared, reference = found(llama, loss=loss)
    assert reference.anatomy is prepared.anatomy
    assert reference.adapted is prepared.model
    assert reference.divergence == (loss == "kl")


@pytest.mark.parametrize("options", [{}, {"method": "full"}])
def test_a_named_model_is_loaded_frozen_beside_it(llama, other, options):
    prepared, reference = found(llama, loss="iw", reference=str(other), **options)
    assert reference.adapted is None
    theirs = {value.data_ptr() for value in reference.anatomy.backbone.parameters()}
    assert theirs.isdisjoint(value.data_ptr() for value in prepared.model.parameters())
    assert not any(value.requires_grad for value in reference.anatomy.backbone.parameters())
    assert not reference.anatomy.backbone.training


def test_a_named_model_gives_its_own_log_probs(llama, other):
    from transformers import AutoModelForCausalLM

    prepared, reference = found(llama, loss="iw", reference=str(other), method="full")
    labels = IDS.clone()
    labels[:, 0] = IGNORED
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": labels, "index": torch.tensor([0])}
    prefix = FrozenPrefix(prepared.anatomy, prepared.first, None)
    with prefix.installed(), scoring(prepared.causal, prepared.anatomy, prefix, reference):
        answer = prepared.model(**batch, score=True)
    expected = log_probs(AutoModelForCausalLM.from_pretrained(other))
    torch.testing.assert_close(answer["reference"], expected)
    torch.testing.assert_close(answer["log_probs"].detach(), log_probs(prepared.causal))
    assert not torch.allclose(answer["reference"], answer["log_probs"], atol=1e-3)


def test_a_named_model_takes_the_precision_of_the_base(llama, other):
    settings = TuneSettings(layers="010", loss="iw", reference=str(other))
    loading = LoadSettings(device="cpu", dtype="bfloat16")
    prepared = prepare(open_checkpoint(str(llama)), LayerPlan.parse("010", 3), settings, loading)
    reference = find_reference(prepared, settings, LoadSettings(device="cpu"), CPU)
    assert {value.dtype for value in reference.anatomy.backbone.parameters()} == {torch.bfloat16}


def test_another_vocabulary_is_refused(llama, pico, tmp_path):
    pico("llama", vocab_size=320).save_pretrained(tmp_path / "wider")
    with pytest.raises(MidblockError, match="has 320 tokens, the base 300"):
        found(llama, loss="kl", reference=str(tmp_path / "wider"))


def test_a_model_that_is_not_there(llama, tmp_path):
    with pytest.raises(MidblockError, match="no model at"):
        found(llama, loss="kl", reference=str(tmp_path / "nowhere"))
