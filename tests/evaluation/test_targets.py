"""Which tokens are predicted, and how they are scored: as transformers' own loss and logits say."""

import math

import pytest
import torch

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.data import TokenizedPrompt, make_batches
from midblock.evaluation import Scores, Targets, check_finite, score, targets

IDS = [(5, 9, 120, 33), (4, 17, 201), (8, 8, 9, 10, 11)]
STARTS = (2, 2, 0)


@pytest.fixture
def batch():
    prompts = [TokenizedPrompt(7 - n, ids, start) for n, (ids, start) in enumerate(zip(IDS, STARTS, strict=True))]
    return make_batches(prompts)[0]


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        ("answer", {7: [120, 33], 6: [201], 5: [8, 9, 10, 11]}),  # before a sample's first token nothing stands
        ("prompt", {7: [9], 6: [17], 5: []}),
        ("all", {7: [9, 120, 33], 6: [17, 201], 5: [8, 9, 10, 11]}),
    ],
)
def test_the_tokens_of_a_region(batch, region, expected):
    found = Targets.of(batch, region)
    by_prompt = {int(index): found.tokens[found.rows == row].tolist() for row, index in enumerate(found.index)}
    assert by_prompt == expected
    before = found.pick(batch.input_ids[..., None].float())
    for row, index in enumerate(found.index.tolist()):
        ids, wanted = IDS[7 - index], len(expected[index])
        stands_before = ids[:wanted] if region == "prompt" else ids[-1 - wanted : -1]
        assert before[found.rows == row].flatten().tolist() == list(stands_before)


def test_an_unknown_region(batch):
    with pytest.raises(MidblockError, match=r"unknown region 'anwser' \(did you mean 'answer'"):
        Targets.of(batch, "anwser")


def test_sums_are_those_of_each_prompt(batch):
    found = Targets.of(batch)
    nll = torch.arange(1.0, 8.0, dtype=torch.float64)
    sums = found.sums(Scores(nll, nll > 5))
    rows = {int(index): row.tolist() for index, row in zip(batch.index, sums, strict=True)}
    assert rows == {5: [10.0, 0.0, 4.0], 7: [11.0, 1.0, 2.0], 6: [7.0, 1.0, 1.0]}


def test_scores_are_the_models_own(family, pico, batch):
    model = pico(family)
    anatomy, found = Anatomy.of(model), Targets.of(batch)
    with torch.no_grad():
        normed = anatomy.backbone(input_ids=batch.input_ids, use_cache=False)[0]
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
        loss = model(input_ids=batch.input_ids, labels=batch.labels(), use_cache=False).loss
        got = score(anatomy, found.pick(normed), found.tokens, 300)
    chosen = logits[found.where].double()
    expected = -chosen.log_softmax(-1)[torch.arange(7), found.tokens]
    torch.testing.assert_close(got.nll, expected, rtol=0, atol=2e-5)
    assert got.right.tolist() == (chosen.argmax(-1) == found.tokens).tolist()
    assert float(got.nll.mean()) == pytest.approx(float(loss), abs=2e-5)


def test_chunks_change_nothing(pico, batch, monkeypatch):
    anatomy, found = Anatomy.of(pico("gemma2").double()), Targets.of(batch, "all")
    normed = torch.randn(9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = score(anatomy, normed, found.tokens, 300)
    for held in (1, 700):
        monkeypatch.setattr(targets, "CHUNK", held)
        part = score(anatomy, normed, found.tokens, 300)
        torch.testing.assert_close(part.nll, whole.nll, rtol=0, atol=1e-12)
        assert part.right.tolist() == whole.right.tolist()


def test_a_smaller_vocabulary_shares_out_all_probability(pico):
    anatomy = Anatomy.of(pico("llama").double())
    normed = torch.randn(1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).expand(5, 32)
    for known, shared_out in ((5, True), (300, False)):
        found = score(anatomy, normed, torch.arange(5), known)
        assert (abs(float(torch.exp(-found.nll).sum()) - 1) < 1e-12) == shared_out
        assert int(found.right.sum()) == int(shared_out)


def test_no_tokens_no_scores(pico):
    found = score(Anatomy.of(pico("llama")), torch.zeros(0, 32), torch.zeros(0, dtype=torch.long), 300)
    assert (len(found.nll), len(found.right)) == (0, 0)


@pytest.mark.parametrize(("layer", "where"), [(-1, "the embedding"), (2, "layer 2")])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_named(batch, layer, where, bad):
    nll = torch.ones(7, dtype=torch.float64)
    found = Targets.of(batch)
    check_finite(Scores(nll, nll > 0), found, "sft", layer)
    nll[4] = bad
    with pytest.raises(MidblockError, match=rf"^sft: .* off {where} is not finite \(first in prompt 7\) .*float32"):
        check_finite(Scores(nll, nll > 0), found, "sft", layer)
