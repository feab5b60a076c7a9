import accelerate
import pytest
import torch

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.evaluation import generate_greedy
from midblock.interventions.steer.steering import amounts_to_add, steered
from midblock.trace import run_backbone, watch

IDS = torch.tensor([[5, 9, 120, 33, 7, 250], [4, 4, 17, 201, 299, 3]])
TEXTS = ["How many", "She has 3 + 4 = 7 apples in the end", "a"]


def vector(seed=0, size=1.0):
    return size * torch.randn(32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logits(model, ids=IDS, **options):
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False, **options).logits


def states(model, layers, ids=IDS):
    seen = {}
    with watch(Anatomy.of(model), layers, lambda layer, found: seen.update({layer: found})):
        run_backbone(Anatomy.of(model), ids)
    return seen


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_vector_is_added_behind_the_block_and_the_model_is_what_it_was(family, pico):
    model = pico(family)
    before, weights, plain = hooks(model), snapshot(model), states(model, [0, 1])
    expected = logits(model)
    with steered(Anatomy.of(model), {0: vector(), 2: vector(1)}, 0.5) as touched:
        inside = states(model, [0])
        assert not torch.equal(logits(model), expected)
    assert touched.calls == {0: 2, 2: 2}
    # `watch` hooks in after the steering, so it sees what the next block gets
    assert torch.equal(inside[0], plain[0] + (0.5 * vector()).float())
    assert hooks(model) == before
    assert torch.equal(logits(model), expected)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_blocks_above_compute_with_what_was_added(family, pico):
    model = pico(family)
    anatomy = Anatomy.of(model)
    last = states(model, [2])[2]
    with torch.inference_mode():
        expected = anatomy.logits(anatomy.final_norm(last + (2 * vector()).float()))
    with steered(anatomy, {2: vector()}, 2.0):
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


def test_a_llama_by_hand(pico):
    model = pico("llama")
    core = model.model
    with torch.inference_mode():
        hidden = core.embed_tokens(IDS)
        positions = torch.arange(IDS.shape[1])[None]
        rotary = core.rotary_emb(hidden, positions)
        causal = torch.full((1, 1, 6, 6), torch.finfo(torch.float32).min).triu(1)
        for block, layer in enumerate(core.layers):
            hidden = layer(hidden, attention_mask=causal, position_embeddings=rotary, position_ids=positions)
            hidden = hidden + vector(block).float() if block in (0, 1) else hidden
        expected = model.lm_head(core.norm(hidden))
    with steered(Anatomy.of(model), {0: vector(0), 1: vector(1)}):
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("direction", "alpha"), [(vector(), 0.0), (torch.zeros(32), 1.0)])
def test_nothing_to_add_changes_no_bit(family, pico, direction, alpha):
    model = pico(family)
    expected = logits(model)
    with steered(Anatomy.of(model), {0: direction, 2: direction}, alpha) as touched:
        assert torch.equal(logits(model), expected)
    assert touched.calls == {}


def test_minus_zero_survives_alpha_zero(pico):
    model = pico("llama")
    model.model.layers[1].register_forward_hook(lambda module, args, output: torch.full_like(output, -0.0))
    with steered(Anatomy.of(model), {1: vector()}, 0.0):
        assert bool(torch.signbit(states(model, [1])[1]).all())


def test_the_vector_is_cast_once_to_the_models_dtype(pico):
    model = pico("llama").to(torch.bfloat16)
    plain = states(model, [1])[1]
    with steered(Anatomy.of(model), {1: vector()}, 0.3):
        found = states(model, [1])[1]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, plain + (0.3 * vector()).to(torch.bfloat16))


def test_each_row_may_have_a_vector_of_its_own(family, pico):
    model = pico(family)
    each = torch.stack([vector(0), vector(1)])[:, None]
    with steered(Anatomy.of(model), {1: each}, 0.5):
        found = logits(model)
    for row in range(2):
        with steered(Anatomy.of(model), {1: vector(row)}, 0.5):
            torch.testing.assert_close(found[row], logits(model)[row], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], logits(model)[0], atol=1e-2)


def test_an_exception_leaves_nothing_behind(pico):
    model = pico("gpt2")
    before, expected = hooks(model), logits(model)
    with pytest.raises(RuntimeError, match="stop"), steered(Anatomy.of(model), {0: vector(), 1: vector()}):
        raise RuntimeError("stop")
    assert hooks(model) == before
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({3: vector()}, "block 3 cannot be steered; the model has blocks 0 to 2"),
        ({0: vector(), -1: vector()}, "block -1 cannot be steered"),
        ({1: torch.ones(16)}, "the direction of block 1 has 16 channels, the model 32"),
        ({1: torch.ones(32, 1, 16)}, "the direction of block 1 has 16 channels, the model 32"),
        ({1: torch.full((32,), torch.nan)}, "the direction of block 1 is not finite"),
        ({}, "no block was given"),
    ],
)
def test_what_cannot_be_steered(pico, vectors, message):
    model = pico("llama")
    with pytest.raises(MidblockError, match=message), steered(Anatomy.of(model), vectors):
        pass
    assert hooks(model) == 0


def test_a_block_that_no_pass_reached(pico):
    with pytest.raises(MidblockError, match="never reached block 1"), steered(Anatomy.of(pico("llama")), {1: vector()}):
        pass


def test_padding_on_either_side_does_not_matter(family, pico):
    model = pico(family)
    ids, pad = IDS[:1, :4], torch.zeros(1, 3, dtype=torch.long)
    with steered(Anatomy.of(model), {0: vector(), 1: vector(1)}):
        alone = logits(model, ids)
        right = logits(model, torch.cat([ids, pad], dim=1))
        torch.testing.assert_close(right[:, :4], alone, rtol=1e-4, atol=1e-4)


def by_hand(model, tokenizer, text, new):
    """Greedy decoding without a cache or padding: the whole text again for each token."""
    ids, written = tokenizer(text)["input_ids"], []
    for _ in range(new):
        token = int(logits(model, torch.tensor([ids + written]))[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        written.append(token)
    return tokenizer.decode(written, skip_special_tokens=True)


def test_generating_with_a_cache_and_padding_on_the_left(family, pico, tokenizer):
    model = pico(family)
    plain = generate_greedy(model, tokenizer, TEXTS, max_new_tokens=6)
    with steered(Anatomy.of(model), {0: vector(), 1: vector(1)}) as touched:
        expected = [by_hand(model, tokenizer, text, 6) for text in TEXTS]
        before = touched.calls[0]
        found = generate_greedy(model, tokenizer, TEXTS, max_new_tokens=6)
        # a pass a token, not one a prompt: it was a cached batch; and four that ask whether padding shows
        assert touched.calls[0] <= before + 6 + 4 < before + 6 * len(TEXTS)
    assert found == expected
    assert found != plain


def test_a_huge_vector_along_a_row_of_the_head_makes_that_token_win_always(pico, tokenizer):
    model = pico("llama")
    anatomy = Anatomy.of(model)
    token = tokenizer(" apples")["input_ids"][-1]
    row = anatomy.head.weight[token].double()
    with steered(anatomy, {2: row}, 1e4):
        found = generate_greedy(model, tokenizer, TEXTS, max_new_tokens=5)
    assert found == [tokenizer.decode([token] * 5)] * 3


def test_a_model_that_is_offloaded(pico):
    model = pico("llama")
    with steered(Anatomy.of(model), {1: vector()}):
        expected = logits(model)
    placed = accelerate.cpu_offload(pico("llama"), torch.device("cpu"))
    with steered(Anatomy.of(placed), {1: vector()}):
        assert torch.equal(logits(placed), expected)


def test_increments_add_up_to_the_topmost_direction():
    vectors = {2: vector(2), 0: vector(0), 1: vector(1)}
    amounts = amounts_to_add(vectors, "increments")
    assert list(amounts) == [0, 1, 2]
    assert torch.equal(amounts[0], vectors[0])
    torch.testing.assert_close(amounts[0] + amounts[1], vectors[1])
    torch.testing.assert_close(sum(amounts.values()), vectors[2])
    whole = amounts_to_add(vectors, "whole")
    assert all(torch.equal(whole[block], vectors[block]) for block in vectors)
    with pytest.raises(MidblockError, match="did you mean 'increments'"):
        amounts_to_add(vectors, "increment")
