"""Count sketches keep inner products: exactly for small tensors, without bias and within the bound for large ones."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from midblock.base import MidblockError, generator
from midblock.checkpoints.places import located
from midblock.tuning.flow import sketch as module
from midblock.tuning.flow.sketch import GradientTrace, gram_of, sketch
from midblock.tuning.place.gradients import Gradients

SEEDS = 600


def drawn(seed=0):
    return generator(seed, "sketch", "some.weight")


def gaussian():
    first, second = torch.randn(2, 40, 32)
    return first, 0.5 * first + second


def of_rank_one():
    """Rows are multiples of one another; one sign for a whole row would leave their products in the sum."""
    return tuple(torch.outer(torch.randn(40), torch.randn(32)) for _ in range(2))


def in_one_column():
    """The width divides m, so that entry mod m would put all of it into two buckets."""
    first, second = torch.zeros(2, 40, 32)
    first[:, 3], second[:, 3] = torch.randn(2, 40)
    return first, second


def equal():
    first = torch.randn(40, 32)
    return first, first


@pytest.mark.parametrize("make", [gaussian, of_rank_one, in_one_column, equal])
def test_inner_products_are_unbiased_and_within_the_bound(make):
    torch.manual_seed(0)
    first, second = make()
    found = torch.stack([sketch(first, 64, drawn(seed)) @ sketch(second, 64, drawn(seed)) for seed in range(SEEDS)])
    true = (first * second).sum()
    bound = (first.square().sum() * second.square().sum() + true.square()) / 64
    assert (found.mean() - true).abs() < 3.5 * (bound / SEEDS).sqrt()
    assert 0.5 * bound < found.var() < 1.25 * bound


@pytest.mark.parametrize("shape", [(64,), (8, 8), (3, 5, 4)])
def test_small_gradients_are_kept_as_they_are(shape):
    gradient = torch.randn(shape)
    assert sketch(gradient, 64, drawn()).equal(gradient.flatten())


def test_a_sketch_is_a_sum_into_one_bucket_each_with_a_sign():
    entries = torch.eye(200)
    matrix = torch.stack([sketch(entry, 64, drawn()) for entry in entries], dim=1)
    assert matrix.abs().sum(0).equal(torch.ones(200))
    assert set(matrix.unique().tolist()) == {-1.0, 0.0, 1.0}
    # neighbours never meet
    assert matrix[:, :64].abs().sum(1).equal(torch.ones(64))
    gradient = torch.randn(10, 20)
    torch.testing.assert_close(sketch(gradient, 64, drawn()), matrix @ gradient.flatten())


def test_pieces_change_nothing(monkeypatch):
    gradient = torch.randn(1000)
    whole = sketch(gradient, 64, drawn())
    monkeypatch.setattr(module, "PIECE", 128)
    torch.testing.assert_close(sketch(gradient, 64, drawn()), whole)


def test_the_seed_and_the_name_decide():
    gradient = torch.randn(1000)
    assert sketch(gradient, 64, drawn()).equal(sketch(gradient, 64, drawn()))
    assert not sketch(gradient, 64, drawn()).equal(sketch(gradient, 64, drawn(1)))
    assert not sketch(gradient, 64, drawn()).equal(sketch(gradient, 64, generator(0, "sketch", "another.weight")))


def test_the_gram_has_exact_lengths_and_cosines_of_one_for_equal_gradients():
    gradient = torch.randn(1000)
    steps = [gradient, 3 * gradient, -gradient, torch.zeros(1000)]
    kept = torch.stack([sketch(step, 64, drawn()) for step in steps])
    squares = torch.stack([step.double().square().sum() for step in steps])
    scale = torch.tensor([1.0, 3.0, -1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(gram_of(kept, squares), squares[0] * torch.outer(scale, scale))


def test_cosines_err_by_one_over_root_m_where_gradients_do_not_agree():
    torch.manual_seed(0)
    steps = torch.randn(40, 5000)
    squares = steps.double().square().sum(1)
    lengths = squares.sqrt()
    true = (steps.double() @ steps.double().T) / lengths[:, None] / lengths
    kept = torch.stack([sketch(step, 256, drawn()) for step in steps])
    found = gram_of(kept, squares) / lengths[:, None] / lengths
    pairs = torch.triu_indices(40, 40, 1).unbind()
    assert (found - true)[pairs].square().mean().sqrt() == pytest.approx(256**-0.5, rel=0.15)


class Two(nn.Module):
    """Two blocks of one matrix each, under names that have a place."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([nn.ModuleDict({"mlp": nn.ModuleDict()}) for _ in range(2)])
        for layer in self.model.layers:
            layer["mlp"]["up_proj"] = nn.Linear(9, 7, bias=False)
            layer["input_layernorm"] = nn.LayerNorm(9, bias=False)


def where(name):
    return located(name, (), {"blocks": "model.layers"}, 2)


def traced(steps, size=8192):
    model = Two()
    trace = GradientTrace(size, seed=0)
    for seed in range(steps):
        torch.manual_seed(seed)
        for value in model.parameters():
            value.grad = torch.randn_like(value)
        trace.add(Gradients(model, where))
    return trace


def test_grams_by_place_are_those_of_all_gradients_there():
    grams = traced(steps=3).grams()
    assert set(grams) == {(layer, part) for layer in (0, 1) for part in ("mlp", "norm", "block")}
    model, vectors = Two(), []
    for seed in range(3):
        torch.manual_seed(seed)
        drawn_now = {name: torch.randn_like(value).double() for name, value in model.named_parameters()}
        vectors.append(torch.cat([value.flatten() for name, value in drawn_now.items() if ".layers.1." in name]))
    whole = torch.stack(vectors)
    torch.testing.assert_close(grams[1, "block"], whole @ whole.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grams[1, "block"], grams[1, "mlp"] + grams[1, "norm"])


def test_how_many_were_too_large_to_keep_is_known():
    assert (traced(1).sketched, traced(1, size=16).sketched) == (0, 2)


def test_gradients_in_16_bits_are_taken_in_32():
    gradient = torch.full((1000,), 0.1, dtype=torch.bfloat16)
    kept = sketch(gradient, 4096, drawn())
    assert kept.dtype == sketch(gradient, 64, drawn()).dtype == torch.float32
    assert kept.equal(gradient.float())


def test_sharded_gradients_are_refused(tmp_path):
    model = Two()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        layer = model.model.layers[0]["mlp"]["up_proj"]
        layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh))
        with pytest.raises(MidblockError, match="these are sharded"):
            GradientTrace(64, seed=0).add(Gradients(model, where))
    finally:
        torch.distributed.destroy_process_group()
