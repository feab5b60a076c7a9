import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from midblock.base import MidblockError
from midblock.checkpoints import Variant
from midblock.data import TokenizedPrompt, make_batches
from midblock.interventions.steer.directions import (
    Direction,
    Directions,
    estimate_directions,
    explained_share,
    principal_axes,
    turn_at_random,
)


def prompts(count=7, longest=20):
    drawn = np.random.default_rng(0)
    lengths = drawn.integers(4, longest, count)
    return [
        TokenizedPrompt(index, tuple(drawn.integers(3, 300, length).tolist()), int(length) // 2)
        for index, length in enumerate(lengths)
    ]


def batches(batch_tokens=10_000):
    return make_batches(prompts(), batch_tokens=batch_tokens)


def variants(base, tuned):
    return Variant("base", None, loaded=base), Variant("sft", None, loaded=tuned)


def biased(model, block, bias):
    """The same model, with `bias` added to one block's output."""
    model.model.layers[block].register_forward_hook(lambda module, args, output: output + bias)
    return model


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_bias_at_one_block_is_found_there_and_nowhere_below(pico):
    bias = drawn(32).float()
    for block in (1, 2):
        found = estimate_directions(*variants(pico("llama"), biased(pico("llama"), block, bias)), batches())
        assert len(found) == 3
        assert found.n == 7
        for below in range(block):
            assert found.of[below].norm == 0
            assert math.isnan(found.of[below].explained)
        torch.testing.assert_close(found.of[block].vector, bias.double(), rtol=1e-5, atol=1e-6)
        assert found.of[block].explained == pytest.approx(1, abs=1e-6)


def by_hand(base, tuned, region):
    """Prompt by prompt, without padding, from transformers' own hidden states."""
    shifts = []
    for prompt in prompts():
        where = {
            "all": slice(None),
            "prompt": slice(None, prompt.answer_start),
            "answer": slice(prompt.answer_start, None),
        }
        both = []
        for model in (base, tuned):
            with torch.no_grad():
                hidden = model(torch.tensor([prompt.input_ids]), output_hidden_states=True).hidden_states
            both.append(torch.stack([states[0, where[region]].double().mean(0) for states in hidden[1:-1]]))
        shifts.append(both[1] - both[0])
    return torch.stack(shifts, dim=1)  # the last block's states are normed in hidden_states, so L-1 layers


@pytest.mark.parametrize("region", ["all", "prompt", "answer"])
@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_the_mean_over_prompts_whatever_the_batches(pico, tuned_from, region, batch_tokens):
    base = pico("llama")
    tuned = tuned_from(base)
    found = estimate_directions(*variants(base, tuned), batches(batch_tokens), region=region)
    shifts = by_hand(base, tuned, region)
    for block, shift in enumerate(shifts):
        direction = found.of[block]
        torch.testing.assert_close(direction.vector, shift.mean(0), rtol=1e-4, atol=1e-6)
        along = shift @ shift.mean(0) / shift.mean(0).norm()
        assert direction.explained == pytest.approx(float(along.square().sum() / shift.square().sum()), rel=1e-4)


def test_pca_finds_a_planted_direction_and_its_share():
    planted = torch.nn.functional.normalize(drawn(32), dim=0)
    sizes = 1 + drawn(40, seed=1).abs()
    noise = drawn(40, 32, seed=2)
    noise -= (noise @ planted)[:, None] * planted  # orthogonal to it
    noise *= 0.5 / noise.norm()
    shifts = sizes[:, None] * planted + noise
    axes = principal_axes(shifts, 1)
    assert float(axes[0] @ planted) > 0.999  # on the side of the mean, whatever the SVD's sign
    assert float(principal_axes(-shifts, 1)[0] @ planted) < -0.999
    share = float(sizes.square().sum() / (sizes.square().sum() + 0.25))
    assert explained_share(shifts, planted[None]) == pytest.approx(share, rel=1e-12)
    assert explained_share(shifts, axes) == pytest.approx(share, rel=1e-3)


def test_principal_axes_are_those_of_scikit_learn():
    shifts = drawn(15, 8) + 0.7
    # Rows and their negatives have mean 0 and the same second moments: centring does nothing to them.
    theirs = PCA(3).fit(torch.cat([shifts, -shifts]).numpy())
    axes = principal_axes(shifts, 3)
    cosines = (axes * torch.from_numpy(theirs.components_)).sum(1)
    torch.testing.assert_close(cosines.abs(), torch.ones(3, dtype=torch.float64))
    assert explained_share(shifts, axes) == pytest.approx(theirs.explained_variance_ratio_.sum())
    assert bool((axes @ shifts.mean(0) >= 0).all())


def test_pca_adds_the_part_of_the_mean_shift_along_its_axes(pico, tuned_from):
    base = pico("llama")
    both = variants(base, tuned_from(base))
    shift = estimate_directions(*both, batches())
    one = estimate_directions(*both, batches(), kind="pca")
    all_ = estimate_directions(*both, batches(), kind="pca", components=7)
    for mean, first, whole in zip(shift.of, one.of, all_.of, strict=True):
        unit = first.vector / first.norm
        assert first.norm == pytest.approx(float(mean.vector @ unit))
        assert mean.explained <= first.explained <= 1
        # seven prompts span at most seven directions, the mean among them
        torch.testing.assert_close(whole.vector, mean.vector)
        assert whole.explained == pytest.approx(1)
        assert whole.parts.shape == (7, 32)
    with pytest.raises(MidblockError, match="8 principal directions cannot be had from 7 prompts"):
        estimate_directions(*both, batches(), kind="pca", components=8)


def test_a_random_direction_has_the_size_of_the_shift_and_another_way(pico, tuned_from):
    base = pico("llama")
    both = variants(base, tuned_from(base))
    shift = estimate_directions(*both, batches())
    random = estimate_directions(*both, batches(), kind="random", seed=3)
    again = estimate_directions(*both, batches(), kind="random", seed=3)
    for mean, ours, same in zip(shift.of, random.of, again.of, strict=True):
        assert ours.norm == pytest.approx(mean.norm)
        assert abs(float(ours.vector @ mean.vector)) < 0.9 * mean.norm**2
        assert torch.equal(ours.parts, same.parts)


@pytest.mark.parametrize(("blocks", "width"), [(3, 8), (12, 5), (1, 4)])
def test_turning_keeps_norms_and_angles(blocks, width):
    vectors = dict(enumerate(drawn(blocks, width)))
    turned = turn_at_random(vectors, 0, "test", 1)
    before, after = torch.stack(list(vectors.values())), torch.stack(list(turned.values()))
    torch.testing.assert_close(after @ after.mT, before @ before.mT)
    assert not torch.allclose(after, before)
    assert not torch.allclose(torch.stack(list(turn_at_random(vectors, 0, "test", 2).values())), after)


def test_turning_has_no_preferred_direction():
    vectors = {0: drawn(6), 1: drawn(6, seed=1)}
    found = torch.stack([turn_at_random(vectors, 0, "test", draw)[1] for draw in range(1500)])
    size = float(vectors[1].norm())
    assert float(found.mean(0).norm()) < 0.1 * size
    torch.testing.assert_close(found.mT @ found / 1500 / size**2 * 6, torch.eye(6).double(), rtol=0, atol=0.25)


def test_written_and_read_to_the_bit(tmp_path):
    parts = [Direction(drawn(2, 4, seed=seed), 1 / 3, math.pi) for seed in range(11)]
    made = Directions("pca", 5, (*parts, Direction(torch.zeros(2, 4).double(), math.nan, 1.0)))
    made.write(tmp_path / "directions.safetensors")
    read = Directions.read(tmp_path / "directions.safetensors")
    assert (read.kind, read.n, len(read), read.width, read.components) == ("pca", 5, 12, 4, 2)
    assert all(torch.equal(ours.parts, theirs.parts) for ours, theirs in zip(made.of, read.of, strict=True))
    assert [each.base_norm for each in read.of[:11]] == [math.pi] * 11
    assert [each.explained for each in read.of[:11]] == [1 / 3] * 11
    assert math.isnan(read.of[11].explained)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_what_is_no_file_of_directions(tmp_path, content):
    file = tmp_path / "directions.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MidblockError, match="holds no directions"):
        Directions.read(file)
