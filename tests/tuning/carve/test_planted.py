"""A planted carrier: the channels that matter are found among many that do not, and where none matters none is kept."""

from types import SimpleNamespace

import torch
from torch import nn

from midblock.tuning.carve.carver import Carver
from midblock.tuning.carve.channels import ChannelGroups, Channels, Group
from midblock.tuning.carve.dual import DualControl
from midblock.tuning.carve.masks import Masks
from midblock.tuning.carve.selected import SelectedWeight
from midblock.tuning.carve.verdict import rank_correlation
from midblock.tuning.settings import Carving

WIDTH, PLANTED, BATCH, STEPS = 80, 4, 64, 240
GROUPS = ChannelGroups(
    {0: tuple(Group(name, number * WIDTH, WIDTH) for number, name in enumerate(("read", "hidden", "write")))},
    {
        "first": Channels(0, (WIDTH + torch.arange(WIDTH), torch.arange(WIDTH))),
        "second": Channels(0, (2 * WIDTH + torch.arange(WIDTH), WIDTH + torch.arange(WIDTH))),
    },
)
FAST = {"mask_warmup_steps": 15, "mask_learning_rate": 0.6, "sparsity_lambda": 0.2}


def outputs(weights, x):
    return x @ weights["first"].T @ weights["second"].T


def chosen(name, masks):
    rows, columns = GROUPS.channels[name].index
    return masks[rows, None] & masks[None, columns]


def carve(planted, seed=0, **options):
    """Two layers of weights; a change of 5 % of their channels makes what is learned, small ones elsewhere nothing."""
    stream = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=stream)

    base = {"first": 1.4 * drawn(WIDTH, WIDTH) / WIDTH**0.5, "second": 3 * drawn(WIDTH, WIDTH) / WIDTH**0.5}
    true = torch.zeros(GROUPS.total, dtype=torch.bool)
    for group in GROUPS.layers[0]:
        true[group.start + torch.randperm(WIDTH, generator=stream)[:planted]] = True
    taught = {name: weight + chosen(name, true) * drawn(WIDTH, WIDTH).sign() for name, weight in base.items()}
    sft = {name: weight + ~chosen(name, true) * 0.01 * drawn(WIDTH, WIDTH) for name, weight in taught.items()}
    weights = {
        name: SelectedWeight.of(nn.Parameter(sft[name]), base[name], GROUPS.channels[name]) for name in GROUPS.channels
    }
    settings = Carving(**{**FAST, **options})
    carver = Carver(settings, GROUPS, weights, Masks.drawn(GROUPS, seed), DualControl.of(settings))
    carver.best = SimpleNamespace(share=0.0)  # nothing is written
    adam = torch.optim.AdamW([weight.parameter for weight in weights.values()], lr=2e-5, weight_decay=0.0)
    for _ in range(STEPS):
        x = drawn(BATCH, WIDTH)
        logits = outputs({name: weight.parameter for name, weight in weights.items()}, x)
        loss = nn.functional.cross_entropy(logits, outputs(taught, x).argmax(-1))
        adam.zero_grad()
        loss.backward()
        carver.before_step(float(loss.detach()))
        adam.step()
        carver.after_step(adam)
    return carver, carver.on[0], true


def test_planted_channels_are_found():
    carver, on, true = carve(PLANTED)
    right = int((on & true).sum())
    assert right / int(on.sum()) >= 0.95
    assert right / int(true.sum()) >= 0.95
    assert carver.dual.within
    assert abs(rank_correlation(on, carver.start[0])) < 0.2


def test_the_published_sum_leaves_the_choice_to_chance():
    """λ beside a sum over masks outweighs what any one of them does for the loss: the start decides who goes first."""
    carver, on, true = carve(PLANTED, sparsity="published")
    assert int((on & true).sum()) / max(1, int(on.sum())) < 0.8
    assert rank_correlation(on, carver.start[0]) > 0.15


def test_where_nothing_matters_nothing_is_kept():
    carver, on, _ = carve(0)
    assert int(on.sum()) <= 0.02 * len(on)
    assert carver.dual.within
