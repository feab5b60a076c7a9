"""The scan is what steering one block in whole passes gives, direction by direction; a block without one stays put."""

import pytest
import torch

from midblock.base import MidblockError, Silent
from midblock.checkpoints import Anatomy
from midblock.data import TokenizedPrompt, make_batches
from midblock.evaluation import difference, mean_nll
from midblock.interventions.steer.directions import turn_at_random
from midblock.interventions.steer.onward import Onward, Whole
from midblock.interventions.steer.scan import Scan
from midblock.interventions.steer.settings import SteerSettings
from midblock.interventions.steer.steering import steered
from midblock.runs.run import Bench

STREAM = torch.Generator().manual_seed(0)
PROMPTS = [
    TokenizedPrompt(index, tuple(torch.randint(3, 300, (length,), generator=STREAM).tolist()), length - 4)
    for index, length in enumerate((9, 14, 7, 12, 6))
]
FAMILIES = ["llama", "gemma2", "gemma3", "gpt2", "bloom", "falcon_rw", "mixtral", "olmoe", "opt"]
DRAWS, ALPHA, SEED = 2, 0.5, 3


def directions(model):
    stream, blocks = torch.Generator().manual_seed(1), range(len(Anatomy.of(model)))
    return {block: torch.randn(32, generator=stream, dtype=torch.float64) for block in blocks}


def scanned(model, vectors, batch_tokens):
    batches = make_batches(PROMPTS, batch_tokens=batch_tokens)
    settings = SteerSettings(alpha=(ALPHA,), random_draws=DRAWS, seed=SEED, batch_tokens=batch_tokens)
    bench = Bench(None, Silent(), [])
    found = Scan(Anatomy.of(model), batches, vectors, settings).run(mean_nll(model, batches, seed=SEED), bench)
    return found, bench.notes


def in_whole_passes(model, vectors):
    """What the numbers mean: a pass of the whole model for each block and direction."""
    anatomy, batches = Anatomy.of(model), make_batches(PROMPTS)
    base = mean_nll(model, batches, seed=SEED)
    found = []
    for block in vectors:
        own = {block: vectors[block]}
        means = []
        for each in (own, *(turn_at_random(own, SEED, "control", block, draw) for draw in range(DRAWS))):
            with steered(anatomy, each, ALPHA):
                means.append(mean_nll(model, batches, seed=SEED))
        drawn = [mean.value - base.value for mean in means[1:]]
        found.append((difference(base, means[0], seed=SEED), (sum(drawn) / DRAWS, min(drawn), max(drawn))))
    return found


def check_alike(found, expected):
    assert len(found) == len(expected)
    for (ours, random), (change, drawn) in zip(found, expected, strict=True):
        ends = [(each.value, each.low, each.high) for each in (ours, random, change)]
        assert [*ends[0], *ends[1]] == pytest.approx([*ends[2], *drawn], abs=1e-6)
        assert abs(change.value) > 1e-4
        assert (ours.n, random.n) == (5, 5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_scan_is_what_whole_passes_give(name, pico):
    model = pico(name)
    vectors = directions(model)
    found, notes = scanned(model, vectors, 1024)
    check_alike(found, in_whole_passes(model, vectors))
    assert notes == []


def test_it_does_not_matter_how_many_directions_go_together(pico):
    model = pico("llama")
    vectors = directions(model)
    expected = in_whole_passes(model, vectors)
    # a prompt and a direction at a time; two directions, and one that goes with an idle copy
    for batch_tokens, most in ((1, 14), (30, 28)):
        widest = []
        hook = model.model.layers[2].register_forward_hook(
            lambda *a, widest=widest: widest.append(a[2][..., 0].numel())
        )
        found, notes = scanned(model, vectors, batch_tokens)
        hook.remove()
        check_alike(found, expected)
        assert (max(widest), notes) == (most, [])


@pytest.mark.parametrize("how", ["beside", "between"])
def test_a_model_whose_blocks_hand_on_more_is_steered_whole_and_that_is_said(handing, how):
    model = handing(how)
    vectors = directions(model)
    found, notes = scanned(model, vectors, 1024)
    check_alike(found, in_whole_passes(model, vectors))
    assert len(notes) == 1
    assert notes[0].startswith("Each block alone was steered in passes of the whole model: ")


def test_without_that_its_numbers_would_be_others(handing):
    anatomy, ids = Anatomy.of(handing("beside")), make_batches(PROMPTS)[0].input_ids
    onward, whole = (
        way.normed(1, directions(anatomy.model)[1], 1.0) for way in (Onward.of(anatomy, ids), Whole(anatomy, ids))
    )
    assert not torch.allclose(onward, whole, atol=1e-2)


def test_a_block_with_nothing_to_add_is_the_base_to_the_bit(pico):
    model = pico("gpt2")
    vectors = {**directions(model), 1: torch.zeros(32, dtype=torch.float64)}
    found, _ = scanned(model, vectors, 20)
    for each in found[1]:
        assert (each.value, each.low, each.high) == (0, 0, 0)
    assert all(found[block][0].value for block in (0, 2))


def test_a_likelihood_that_is_no_number_names_block_and_prompt(pico):
    model = pico("llama")
    vectors = directions(model)
    vectors[1] *= 1e300  # infinite in float32
    message = r"^the base steered behind block 1: the likelihood read off layer 2 is not finite \(first in prompt \d\)"
    with pytest.raises(MidblockError, match=message):
        scanned(model, vectors, 1024)
