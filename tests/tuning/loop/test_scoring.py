"""Scores from inside the forward pass equal those read off the model's own logits, on every family."""

import copy

import pytest
import torch

from midblock.base import LayerPlan, MidblockError
from midblock.checkpoints import Anatomy
from midblock.data.batches import IGNORED
from midblock.tuning.loop.scoring import Reference, score_targets, scoring
from midblock.tuning.losses import LOSSES, Objective, Scored
from midblock.tuning.place.adapter_plan import place_adapters
from midblock.tuning.place.adapters import attach
from midblock.tuning.prefix.prefix import FrozenPrefix
from midblock.tuning.settings import Placement

LENGTHS = (9, 5, 7)
SCORES = ("log_probs", "row", "reference", "divergence", "entropy")


def make_batch():
    """Three sequences padded on the right; completions begin at their middle."""
    ids = torch.randint(3, 300, (3, max(LENGTHS)), generator=torch.Generator().manual_seed(7))
    real = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    answer = real & (torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS)[:, None] // 2)
    return {
        "input_ids": ids.masked_fill(~real, 0),
        "attention_mask": real.long(),
        "labels": ids.masked_fill(~answer, IGNORED),
        "index": torch.arange(3),
    }


def parts(model, reference=None):
    anatomy = Anatomy.of(model)
    return model, anatomy, FrozenPrefix(anatomy, 0, None), reference


def score(model, batch, reference=None, top_k=0):
    with scoring(*parts(model, reference), top_k):
        return model(**batch, score=True)


def from_logits(model, batch):
    """ln p of the whole vocabulary at each target, and the targets, one sequence at a time and without padding."""
    log_probs, targets = [], []
    for row, length in enumerate(LENGTHS):
        ids, labels = batch["input_ids"][row : row + 1, :length], batch["labels"][row, :length]
        logits = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        wanted = (labels[1:] != IGNORED).nonzero()[:, 0]
        log_probs.append(logits[wanted])
        targets.append(labels[1:][wanted])
    return torch.cat(log_probs), torch.cat(targets)


def picked(log_probs, targets):
    return log_probs.gather(-1, targets[:, None])[:, 0]


def gradients(model):
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def adapted(base, amount=0.2):
    settings = Placement(lora_r=4, target_modules="attention")
    plan = LayerPlan.parse("010", 3)
    base.requires_grad_(False)
    model = attach(base, place_adapters(base, plan, settings), settings, seed=0)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_B." in name:
                value.add_(amount * torch.randn_like(value))
    return model


def test_log_probs_are_those_of_the_models_own_logits(family, pico):
    model, batch = pico(family), make_batch()
    with torch.no_grad():
        scores = score(model, batch)
        expected, targets = from_logits(model, batch)
    torch.testing.assert_close(scores["log_probs"], picked(expected, targets), atol=2e-5, rtol=2e-5)
    assert scores["row"].tolist() == [row for row, length in enumerate(LENGTHS) for _ in range(length - length // 2)]
    assert set(scores) == {"log_probs", "row"}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma2", {"final_logit_softcapping": 1.5}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 5.0}),
    ],
)
def test_what_a_family_does_to_its_logits_is_done(family, changes, pico):
    model, batch = pico(family, **changes), make_batch()
    with torch.no_grad():
        scores = score(model, batch)["log_probs"]
        expected, targets = from_logits(model, batch)
        anatomy = Anatomy.of(model)
        bare = anatomy.head(anatomy.backbone(batch["input_ids"][:1]).last_hidden_state)
        capped = model(batch["input_ids"][:1]).logits
    assert not torch.allclose(bare, capped, atol=1e-2)
    torch.testing.assert_close(scores, picked(expected, targets), atol=2e-5, rtol=2e-5)


def test_the_mean_score_is_transformers_own_loss(family, pico):
    model, batch = pico(family), make_batch()
    with torch.no_grad():
        theirs = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}, use_cache=False)
        ours = -score(model, batch)["log_probs"].mean()
    assert ours.item() == pytest.approx(theirs.loss.item() - auxiliary(model, theirs), abs=2e-5)


def auxiliary(model, output):
    found = getattr(output, "aux_loss", None)
    return 0.0 if found is None else float(found) * model.config.router_aux_loss_coef


def test_gradients_are_those_of_the_models_own_loss(family, pico):
    batch = make_batch()
    ours, theirs = pico(family), pico(family)
    scores = score(ours, batch)["log_probs"]
    scores.sum().backward()
    log_probs, targets = from_logits(theirs, batch)
    picked(log_probs, targets).sum().backward()
    expected = gradients(theirs)
    assert gradients(ours).keys() == expected.keys()
    for name, gradient in gradients(ours).items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-4, rtol=2e-3, msg=name)


def test_padding_makes_no_difference(pico):
    model, batch = pico("llama"), make_batch()
    wider = {
        name: torch.nn.functional.pad(batch[name], (0, 6), value=fill)
        for name, fill in (("input_ids", 299), ("attention_mask", 0), ("labels", IGNORED))
    }
    with torch.no_grad():
        torch.testing.assert_close(
            score(model, {**wider, "index": batch["index"]})["log_probs"], score(model, batch)["log_probs"]
        )


@pytest.mark.parametrize("trained", [True, False], ids=["head trained", "head frozen"])
@pytest.mark.parametrize("kind", ["nothing", "reference", "divergence", "entropy"])
@pytest.mark.parametrize("tokens_at_once", [1, 2, 5])
def test_chunks_change_neither_scores_nor_gradients(pico, tuned_from, kind, tokens_at_once, trained):
    results = []
    for logit_bytes in (tokens_at_once * 4 * 300, 2**28):
        model = pico("gemma2")
        other = tuned_from(model)
        anatomy = Anatomy.of(model)
        anatomy.head.weight.requires_grad_(trained)
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(11, 32, generator=generator).requires_grad_()
        known = torch.randn(11, 32, generator=generator)
        targets = torch.randint(300, (11,), generator=generator)
        compares = kind in ("reference", "divergence")
        reference = Reference(Anatomy.of(other), None, kind == "divergence") if compares else None
        top_k = 20 if kind == "entropy" else 0
        given = (anatomy, hidden, targets, reference, known if compares else None, top_k)
        scores = score_targets(*given, logit_bytes=logit_bytes)
        weights = torch.linspace(0.5, 2, 11)
        (weights * scores["log_probs"] + weights.flip(0) * scores.get("divergence", torch.zeros(11))).sum().backward()
        results.append((scores, hidden.grad, anatomy.head.weight.grad))
    (chunked, *ours), (whole, *theirs) = results
    assert chunked.keys() == whole.keys()
    for name in whole:
        torch.testing.assert_close(chunked[name], whole[name])
    torch.testing.assert_close(ours, theirs)


def test_the_head_sees_the_targets_alone_and_few_at_a_time(pico):
    model, sizes = pico("llama"), []
    model.lm_head.register_forward_hook(lambda module, given, output: sizes.append(output.numel() // 300))
    score(model, make_batch())
    assert sizes.pop() == sum(length - length // 2 for length in LENGTHS)
    targets = torch.zeros(11, dtype=torch.long)
    score_targets(Anatomy.of(model), torch.randn(11, 32), targets, logit_bytes=4 * 300 * 4)
    assert sizes == [4, 4, 3]


def test_a_frozen_head_makes_logits_once(pico):
    model, sizes = pico("llama"), []
    model.requires_grad_(False)
    model.lm_head.register_forward_hook(lambda module, given, output: sizes.append(output.numel() // 300))
    hidden = torch.randn(11, 32, requires_grad=True)
    targets = torch.zeros(11, dtype=torch.long)
    score_targets(Anatomy.of(model), hidden, targets, logit_bytes=4 * 300 * 4)["log_probs"].sum().backward()
    assert sizes == [4, 4, 3]
    assert hidden.grad is not None


def test_divergence_is_that_of_the_two_models_distributions(family, pico, tuned_from):
    base, batch = pico(family), make_batch()
    model = tuned_from(base, 0.5)
    with torch.no_grad():
        scores = score(model, batch, Reference(Anatomy.of(base), None, True))
        ours, targets = from_logits(model, batch)
        theirs, _ = from_logits(base, batch)
    expected = torch.nn.functional.kl_div(theirs, ours, log_target=True, reduction="none").sum(-1)
    assert expected.max() > 1e-3
    torch.testing.assert_close(scores["divergence"], expected, atol=2e-5, rtol=1e-3)
    torch.testing.assert_close(scores["log_probs"], picked(ours, targets), atol=2e-5, rtol=2e-5)
    assert set(scores) == {"log_probs", "row", "divergence"}


def test_the_gradient_of_the_divergence_reaches_the_model_and_not_the_reference(pico, tuned_from):
    base, batch = pico("llama"), make_batch()
    model = tuned_from(base)
    score(model, batch, Reference(Anatomy.of(base), None, True))["divergence"].sum().backward()
    assert not gradients(base)
    copied = tuned_from(base)
    ours, _ = from_logits(copied, batch)
    with torch.no_grad():
        theirs, _ = from_logits(base, batch)
    torch.nn.functional.kl_div(theirs, ours, log_target=True, reduction="sum").backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, copied.get_parameter(name).grad, atol=1e-4, rtol=1e-3)


def test_the_reference_with_adapters_bypassed_is_the_untouched_base(family, pico):
    base, batch = pico(family), make_batch()
    untouched = copy.deepcopy(base)
    model = adapted(base)
    scores = score(base, batch, Reference(Anatomy.of(base), model, False))
    with torch.no_grad():
        expected, targets = from_logits(untouched, batch)
        expected = picked(expected, targets)
    torch.testing.assert_close(scores["reference"], expected, atol=2e-5, rtol=2e-5)
    assert not torch.allclose(scores["log_probs"], expected, atol=1e-3)
    assert scores["log_probs"].requires_grad
    assert not scores["reference"].requires_grad


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_reference_has_no_dropout_while_the_model_trains(family, pico):
    """GPT-2 drops activations by its own config; a noisy reference would be another one at each step."""
    base, batch = pico(family), make_batch()
    expected = score(base, batch)["log_probs"].detach()
    model = adapted(base).train()
    base.lm_head.eval()
    before = {name: module.training for name, module in base.named_modules()}
    torch.manual_seed(0)
    scores = score(base, batch, Reference(Anatomy.of(base), model, False))
    torch.testing.assert_close(scores["reference"], expected, atol=2e-5, rtol=2e-5)
    assert {name: module.training for name, module in base.named_modules()} == before


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_scores_are_what_the_losses_take(pico, loss):
    base, batch = pico("llama"), make_batch()
    model = adapted(base)
    reference = Reference(Anatomy.of(base), model, LOSSES[loss].divergence)
    answer = score(base, batch, reference, top_k=20 if LOSSES[loss].entropy else 0)
    scored = Scored(**{name: answer.get(name) for name in SCORES})
    total, count = LOSSES[loss].function(scored, Objective())
    total.backward()
    assert count == len(scored.row) == (batch["labels"][:, 1:] != IGNORED).sum()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    assert all(".lora_" in name for name in gradients(model))


def test_a_batch_without_a_target_has_empty_scores(pico):
    model, batch = pico("llama"), make_batch()
    scores = score(model, {**batch, "labels": torch.full_like(batch["labels"], IGNORED)}, top_k=20)
    assert len(scores["log_probs"]) == len(scores["row"]) == len(scores["entropy"]) == 0
    scores["log_probs"].sum().backward()


def test_without_score_the_forward_is_as_always(family, pico):
    model, batch = pico(family), make_batch()
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        before = model(**given, use_cache=False)
        with scoring(*parts(model)):
            during = model(**given, use_cache=False)
    assert torch.equal(during.logits, before.logits)
    assert torch.equal(during.loss, before.loss)


def test_forward_is_handed_back(pico):
    model = pico("llama")
    original = model.forward
    with scoring(*parts(model)):
        assert model.forward != original
    assert model.forward == original
    assert "forward" not in vars(model)
    with pytest.raises(MidblockError, match="in the middle"), scoring(*parts(model)):
        raise MidblockError("in the middle")
    assert "forward" not in vars(model)


def test_a_forward_that_something_else_replaced_is_handed_back_to_it(pico):
    model = pico("llama")

    def replaced(*args, **kwargs):
        return "theirs"

    model.forward = replaced
    with scoring(*parts(model)):
        assert model() == "theirs"
    assert model.forward is replaced


def test_adapters_work_again_after_a_failure_in_the_reference_pass(pico):
    base, batch = pico("llama"), make_batch()
    model = adapted(base)
    expected = score(base, batch)["log_probs"]
    with pytest.raises(IndexError):
        score(base, {**batch, "input_ids": batch["input_ids"] + 10_000}, Reference(Anatomy.of(base), model, False))
    assert torch.equal(score(base, batch)["log_probs"], expected)
