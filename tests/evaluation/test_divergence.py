import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from midblock.base import MidblockError
from midblock.checkpoints import without_adapters
from midblock.data import Batch, TokenizedPrompt, TokenizedSet, make_batches
from midblock.evaluation import divergence, mean_divergence, mean_nll, targets

IDS = [(5, 9, 120, 33, 7, 8), (4, 17, 201), (8, 8, 9, 10, 11, 40, 41, 42, 43), (60, 61)]
STARTS = [3, 1, 6, 2]
TOKENS = TokenizedSet(
    tuple(TokenizedPrompt(10 + i, ids, start) for i, (ids, start) in enumerate(zip(IDS, STARTS, strict=True))),
    "raw", 0, (), (),
)  # fmt: skip


def log_probs(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


def positions(ids, start, region):
    """Where the distribution counts, written out."""
    last = len(ids) - 1
    return {"all": range(last + 1), "prompt": range(min(start, last + 1) - 1), "answer": range(start - 1, last)}[region]


def by_hand(model, reference, region):
    sums, counts = [], []
    for ids, start in zip(IDS, STARTS, strict=True):
        where = list(positions(ids, start, region))
        q, p = log_probs(model, ids)[where], log_probs(reference, ids)[where]
        sums.append(float(F.kl_div(q, p, log_target=True, reduction="sum")))
        counts.append(len(where))
    return sums, counts


def adapted(model, **settings):
    peft = pytest.importorskip("peft")
    torch.manual_seed(5)
    targets = ["q_proj", "down_proj", "lm_head"]
    config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **settings)
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("region", ["all", "prompt", "answer"])
def test_kl_is_torchs_over_the_tokens_that_count(pico, tuned_from, region):
    base = pico("qwen3")
    tuned = tuned_from(base, amount=0.5)
    found = mean_divergence(tuned, base, TOKENS, region=region)
    sums, counts = by_hand(tuned, base, region)
    kept = [i for i, count in enumerate(counts) if count]
    assert found.index.tolist() == [10 + i for i in kept]
    assert found.counts.tolist() == [counts[i] for i in kept]
    torch.testing.assert_close(
        found.sums, torch.tensor([sums[i] for i in kept], dtype=torch.float64), rtol=1e-4, atol=1e-7
    )
    assert found.value == pytest.approx(sum(sums) / sum(counts), rel=1e-4)
    assert (found.low < found.value < found.high) == (len(kept) > 3)  # three prompts are too few for an interval
    # The other way round it is another number.
    assert mean_divergence(base, tuned, TOKENS, region=region).value != pytest.approx(found.value, rel=1e-3)


def test_every_family_reads_its_head_as_its_own_forward_does(pico, tuned_from, family):
    base = pico(family)
    tuned = tuned_from(base)
    sums, counts = by_hand(tuned, base, "all")
    assert mean_divergence(tuned, base, TOKENS).value == pytest.approx(sum(sums) / sum(counts), rel=1e-3)


def test_a_model_does_not_diverge_from_itself(pico):
    model = pico("gemma2")
    found = mean_divergence(model, model, TOKENS)
    assert (found.value, found.low, found.high, found.n) == (0.0, 0.0, 0.0, 4)


def test_scaled_logits_have_a_known_divergence(pico):
    """A head of zeros says every token is as likely: KL(uniform‖p) = −ln V − mean ln p, and the NLL is ln V."""
    model, flat = pico("llama"), pico("llama")
    with torch.no_grad():
        flat.lm_head.weight.zero_()
    expected = [-math.log(300) - log_probs(model, ids).mean(-1) for ids in IDS]
    found = mean_divergence(model, flat, TOKENS)
    assert found.value == pytest.approx(float(torch.cat(expected).mean()), rel=1e-5)
    likelihood = mean_nll(flat, TOKENS, region="all")
    assert likelihood.value == pytest.approx(math.log(300), rel=1e-12)
    assert likelihood.counts.tolist() == [5, 2, 8, 1]


def test_nll_is_the_models_own_loss(pico):
    model = pico("llama")
    found = mean_nll(model, TOKENS)
    assert found.index.tolist() == [10, 11, 12]  # the last one has no answer
    assert found.counts.tolist() == [3, 2, 3]
    for row, (ids, start) in enumerate(zip(IDS[:3], STARTS, strict=False)):
        labels = torch.tensor([ids])
        labels[:, :start] = -100
        loss = model(input_ids=torch.tensor([ids]), labels=labels).loss.item()
        assert float(found.sums[row]) / int(found.counts[row]) == pytest.approx(loss, rel=1e-5)
    assert found.value == float(found.sums.sum() / found.counts.sum())


@pytest.mark.parametrize("measure", ["kl", "nll"])
def test_batches_padding_and_chunks_change_nothing(pico, tuned_from, monkeypatch, measure):
    base = pico("llama")
    tuned = tuned_from(base)

    def measured(prompts, **options):
        if measure == "kl":
            return mean_divergence(tuned, base, prompts, region="answer", **options)
        return mean_nll(tuned, prompts, **options)

    def wider(batch):
        """The same prompts with five more columns of padding, whose ids are no pad token's."""
        pad = torch.full((len(batch.index), 5), 77)
        none = torch.zeros_like(pad)
        return Batch(
            batch.index,
            torch.cat([batch.input_ids, pad], 1),
            torch.cat([batch.attention_mask, none], 1),
            torch.cat([batch.answer_mask, none.bool()], 1),
        )

    whole = measured(TOKENS)
    others = [measured(TOKENS, batch_tokens=1), measured([wider(b) for b in make_batches(TOKENS.prompts)])]
    others.append(measured(make_batches(TOKENS.prompts, batch_tokens=12)[::-1]))
    for module in (targets, divergence):
        monkeypatch.setattr(module, "CHUNK", 700)  # two positions of 300 logits
    others.append(measured(TOKENS))
    for other in others:
        assert torch.equal(other.index, whole.index)
        assert torch.equal(other.counts, whole.counts)
        torch.testing.assert_close(other.sums, whole.sums, rtol=1e-4, atol=1e-6)
        assert (other.low, other.high) == pytest.approx((whole.low, whole.high), rel=1e-4, nan_ok=True)


def test_the_reference_of_an_adapted_model_is_what_it_was_put_on(pico):
    base = pico("llama")
    model = adapted(pico("llama"))
    before = {name: (value.clone(), value.requires_grad) for name, value in model.named_parameters()}
    model.train()
    found = mean_divergence(model, None, TOKENS)
    assert found.value > 0.01
    assert found.value == pytest.approx(mean_divergence(model, base, TOKENS).value, rel=1e-5)
    assert all(module.training for module in model.modules())
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name][0])
        assert value.requires_grad == before[name][1]


def test_frozen_adapters_stay_frozen(pico):
    model = adapted(pico("llama")).requires_grad_(False)
    output = log_probs(model, IDS[0])
    with without_adapters(model):
        torch.testing.assert_close(log_probs(model, IDS[0]), log_probs(pico("llama"), IDS[0]))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(log_probs(model, IDS[0]), output)


def test_prompts_are_resampled_not_tokens(pico):
    """The interval is that of a ratio of sums over prompts (delta method), a quarter as wide for 16 times as many."""
    model = pico("llama")
    found = mean_nll(model, TOKENS, region="all")
    again = TokenizedSet(
        tuple(TokenizedPrompt(i, p.input_ids, p.answer_start) for i, p in enumerate(TOKENS.prompts * 16)),
        "raw",
        0,
        (),
        (),
    )
    many = mean_nll(model, again, region="all")
    assert many.value == pytest.approx(found.value, rel=1e-6)
    residual = found.sums - found.value * found.counts
    error = float((residual.square().mean() / found.n).sqrt() / found.counts.double().mean())
    assert many.high - many.low == pytest.approx(2 * 1.96 * error / 4, rel=0.25)
    alone = mean_nll(model, TokenizedSet(TOKENS.prompts[:1], "raw", 0, (), ()))
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)


def test_mistakes_are_named(pico):
    model = pico("llama")
    with pytest.raises(MidblockError, match="no adapters to switch off"):
        mean_divergence(model, None, TOKENS)
    with pytest.raises(MidblockError, match="no token counts"):
        mean_nll(model, TokenizedSet(TOKENS.prompts[3:], "raw", 0, (), ()))
    with pytest.raises(MidblockError, match="region"):
        mean_nll(model, TOKENS, region="answers")
    with torch.no_grad():
        model.model.embed_tokens.weight[17] = float("nan")  # which prompt 11 alone has
    with pytest.raises(MidblockError, match=r"KL divergence is not finite \(first in prompt 11\)"):
        mean_divergence(model, pico("llama"), TOKENS)
    with pytest.raises(MidblockError, match=r"likelihood is not finite \(first in prompt 11\)"):
        mean_nll(model, TOKENS)


def test_prompt_tuning_is_refused(pico):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(pico("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(MidblockError, match="prompt tuning"):
        mean_nll(model, TOKENS)
