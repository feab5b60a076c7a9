"""J: against its definition, its gradient against finite differences, and both ways of matching."""

import pytest
import torch

from midblock.base import MidblockError
from midblock.carriers.erase.ends import ends_of, padded, read_ends
from midblock.carriers.erase.objective import Objective, project
from midblock.carriers.erase.training import frozen, random_prompt
from midblock.checkpoints import Anatomy, soft_prompt_in

ALL = torch.arange(6)


def with_prompt(training, seed=0):
    """The tuned model with a random soft prompt, and P."""
    weight = training.tuned.get_input_embeddings().weight.detach()
    model = training.given(random_prompt(weight.float(), training.settings, seed))
    embedding = soft_prompt_in(model)
    embedding.prompt.data = embedding.prompt.data.to(weight.dtype)
    return model, embedding.prompt.requires_grad_(True)


def by_hand(training, model, prompt, place, weights):
    """J of one prompt alone, from the models' own states and logits."""
    row = training.train.rows[place]
    base = training.base.model(input_ids=torch.tensor([row]))
    ids = torch.tensor([soft_prompt_in(model).insert(row)])
    ours = model(input_ids=ids)
    states, last = 0.0, training.settings.last
    for block, channels in training.channels.items():
        with_it = blocks_output(model, block, ids)[0, -1, channels]
        difference = with_it - blocks_output(training.base.model, block, torch.tensor([row]))[0, -1, channels]
        states += difference.square().mean() / len(training.channels)
    p, q = (each.logits[0, -last:].log_softmax(-1) for each in (base, ours))
    divergence = (p.exp() * (p - q)).sum(-1).mean()
    size = prompt.square().sum() / len(prompt)
    return weights.states * states + weights.predictions * divergence + weights.size * size


def blocks_output(model, block, ids):
    seen = []
    hook = (
        Anatomy.of(model)
        .blocks[block]
        .register_forward_hook(
            lambda module, args, output: seen.append(output if isinstance(output, torch.Tensor) else output[0])
        )
    )
    model(input_ids=ids)
    hook.remove()
    return seen[0]


def test_a_batch_is_its_prompts_one_by_one_by_definition(training):
    made = training(exact=True)
    model, prompt = with_prompt(made)
    anatomy = Anatomy.of(model)
    together = made.parts(anatomy, prompt, made.train, ALL).total
    for place in ALL.tolist():
        alone = made.parts(anatomy, prompt, made.train, torch.tensor([place])).total
        torch.testing.assert_close(together[place], alone[0], rtol=1e-10, atol=0)
        own = by_hand(made, model, prompt, place, made.settings.objective)
        torch.testing.assert_close(together[place], own, rtol=1e-8, atol=0)


@pytest.mark.parametrize("matching", ["per-prompt", "batch-mean"])
def test_the_gradient_is_that_of_finite_differences(training, matching):
    made = training(exact=True, objective=Objective(size=0.1, matching=matching))
    with frozen(made.tuned):
        model, prompt = with_prompt(made)
        anatomy = Anatomy.of(model)
        value = lambda: made.parts(anatomy, prompt, made.train, ALL).total.mean()  # noqa: E731
        (found,) = torch.autograd.grad(value(), prompt)
        assert all(each.grad is None and not each.requires_grad for each in made.tuned.parameters())
        for place in ((0, 0), (1, 17), (3, 31)):
            ends = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    prompt[place] += step
                    ends.append(float(value()))
                    prompt[place] -= step
            assert float(found[place]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-8)


def test_the_mean_over_a_batch_hides_what_prompts_differ_by(training):
    made = training()
    model, prompt = with_prompt(made)
    anatomy = Anatomy.of(model)
    ours = read_ends(anatomy, *padded(made.train.rows, anatomy.embedding), made.channels, 3)
    each, mean = (
        Objective(predictions=0.0, size=0.0, matching=way).of(ours, made.train.ends, anatomy, made.base, prompt).total
        for way in ("per-prompt", "batch-mean")
    )
    assert len(set(mean.tolist())) == 1
    assert float(mean[0]) < float(each.mean())  # Jensen
    # of one prompt both are the same
    one = torch.tensor([2])
    alone = [
        made.parts(anatomy, prompt, made.train, one).states,
        Objective(matching="batch-mean").of(
            read_ends(anatomy, *padded([made.train.rows[2]], anatomy.embedding), made.channels, 3),
            made.train.ends.take(one), anatomy, made.base, prompt,
        ).states,
    ]  # fmt: skip
    torch.testing.assert_close(*alone)


def test_without_channels_predictions_alone_count(training):
    made = training(channels={})
    model, prompt = with_prompt(made)
    parts = made.parts(Anatomy.of(model), prompt, made.train, ALL)
    assert not parts.states.any()
    torch.testing.assert_close(parts.total, 0.7 * parts.divergence + 0.1 * parts.size)


def test_long_vectors_are_brought_back_and_short_ones_left():
    prompt = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    project(prompt, 2.0)
    torch.testing.assert_close(prompt, torch.tensor([[1.2, 1.6], [0.3, 0.4], [0.0, 0.0]]))


def test_more_last_tokens_than_a_prompt_has_are_refused(training):
    made = training()
    with pytest.raises(MidblockError, match="prompt 0 has 6 tokens; predictions at the last 7 are compared"):
        ends_of(made.base, made.train.rows, {}, 7, 4, lambda _: None)
