"""Anchors on a model that torch's `fully_shard` split over real processes: the same numbers as in one piece."""

import subprocess
import sys

import pytest

COMMON = """
import sys
import torch
from torch import nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from midblock.base import MidblockError
from midblock.tuning.anchor.full import full_anchor
from midblock.tuning.anchor.lora import lora_anchor
from midblock.tuning.anchor.factors import factorize

rank, world, meet = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method="file://" + meet, rank=rank, world_size=world)
mesh = init_device_mesh("cpu", (world,))

calls = []
reduce = dist.all_reduce
def counted(tensor, *rest, **options):
    calls.append(tensor.numel())
    return reduce(tensor, *rest, **options)

def drawn(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

class Tiny(nn.Module):
    def __init__(self, shapes):
        super().__init__()
        for place, (name, shape) in enumerate(shapes.items()):
            self.register_parameter(name, nn.Parameter(drawn(shape, place)))
    def forward(self):
        return sum((parameter * parameter).sum() for parameter in self.parameters())

def pair(shapes, free):
    whole, split = Tiny(shapes), Tiny(shapes)
    fully_shard(split, mesh=mesh, ignored_params={getattr(split, name) for name in free})
    return whole, split

def move(model, amount=0.2):
    with torch.no_grad():
        for place, parameter in enumerate(model.parameters()):
            change = amount * drawn(parameter.shape, 100 + place)
            if isinstance(parameter, DTensor):
                change = distribute_tensor(change, mesh, [Shard(0)]).to_local()
                parameter.to_local().add_(change)
            else:
                parameter.add_(change)

def gradient(parameter):
    return parameter.grad.full_tensor() if isinstance(parameter, DTensor) else parameter.grad

def compare(whole, split, make, empty):
    anchors = [make(dict(model.named_parameters())) for model in (whole, split)]
    move(whole), move(split)
    for model in (whole, split):
        model().backward()
        getattr(model, empty).grad = None
    expected = anchors[0].add_gradient(1.5)
    dist.all_reduce = counted
    calls.clear()
    found = anchors[1].add_gradient(1.5)
    assert len(calls) == 1, calls
    dist.all_reduce = reduce
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(anchors[1].value(), expected, rtol=1e-10, atol=1e-10)
    assert expected > 0.01
    for (name, one), other in zip(whole.named_parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(gradient(other), one.grad, rtol=1e-10, atol=1e-10, msg=lambda text: name + text)
    return calls[0]
"""

FULL = """
SHAPES = {
    "even": (12, 7), "uneven": (5, 9), "single": (1, 6), "tall": (31, 4), "experts": (4, 5, 6), "few": (1, 6, 5),
    "free": (6, 6), "bias": (7,),
}
K = 3

def factors_of(shapes):
    found = {}
    for place, (name, shape) in enumerate(shapes.items()):
        if len(shape) > 1:
            k = min(K, *shape[-2:])
            found[name] = factorize(drawn(shape, place), k, seed=0, dtype=torch.float64)
    return found

factors = factors_of(SHAPES)
for scope in ("block", "subspace"):
    for normalize in (False, True):
        whole, split = pair(SHAPES, ["free"])
        held = lambda own: full_anchor({name: (own[name], factors[name]) for name in factors}, 0.7, scope, normalize)
        sent = compare(whole, split, held, "uneven")
        if scope == "block":
            assert sent == 3 * K * K + 1 + 2  # even, uneven and tall, single, and a value for each stack of experts
        rows = [parameter.to_local().shape[0] for name, parameter in split.named_parameters() if name != "free"]
        assert (0 in rows) == (rank > 0)

# every process must find the weight its own, or all must refuse together
whole, split = pair(SHAPES, ["free"])
move(split, 2.0)
try:
    full_anchor({"even": (split.even, factors["even"])}, 1.0, "subspace")
except MidblockError as error:
    assert "even is not the weight" in str(error)
else:
    raise SystemExit("no refusal")

columns = nn.Parameter(distribute_tensor(drawn((12, 7), 0), mesh, [Shard(1)]))
try:
    full_anchor({"w": (columns, factors["even"])}, 1.0)
except MidblockError as error:
    assert "w is split as" in str(error)
else:
    raise SystemExit("no refusal")

copied = nn.Parameter(distribute_tensor(drawn((12, 7), 0) * 2, mesh, [Replicate()]))
alone = nn.Parameter(drawn((12, 7), 0) * 2)
values = [full_anchor({"w": (one, factors["even"])}, 1.0).add_gradient() for one in (copied, alone)]
torch.testing.assert_close(*values)
torch.testing.assert_close(copied.grad.to_local(), alone.grad)
"""

LORA = """
SHAPES = {
    "A_even": (4, 7), "B_even": (12, 4), "A_uneven": (3, 9), "B_uneven": (5, 3), "A_single": (1, 6), "B_single": (7, 1),
    "A_free": (2, 6), "B_free": (6, 2),
}
NAMES, K = ("even", "uneven", "single", "free"), 3
weights = {name: drawn((SHAPES["B_" + name][0], SHAPES["A_" + name][1]), 50) for name in NAMES}
factors = {name: factorize(weight, K, seed=0, dtype=torch.float64) for name, weight in weights.items()}
for scope in ("block", "subspace"):
    for normalize in (False, True):
        whole, split = pair(SHAPES, ["A_free", "B_free"])
        def held(own):
            items = {name: (own["A_" + name], own["B_" + name], 1.5, factors[name]) for name in NAMES}
            return lora_anchor(items, 0.7, scope, normalize)
        sent = compare(whole, split, held, "A_uneven")
        if scope == "block":
            assert sent == 2 * K * (4 + 3 + 1)
try:
    lora_anchor({"w": (split.A_even, whole.B_even, 1.0, factors["even"])}, 1.0)
except MidblockError as error:
    assert "shared out over different processes" in str(error)
else:
    raise SystemExit("no refusal")
"""


@pytest.mark.parametrize("world", [2, 3])
def test_sharded_as_in_one_piece(tmp_path, world):
    script = COMMON + FULL + LORA + "dist.destroy_process_group()\n"
    commands = [[sys.executable, "-c", script, str(rank), str(world), str(tmp_path / "meet")] for rank in range(world)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate(timeout=180)[1] for process in running]
    assert [process.returncode for process in running] == [0] * world, "\n".join(said)
