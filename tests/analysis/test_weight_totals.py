"""Large weights outside the blocks: compared some rows at a time, never made in float64 as a whole."""

import copy

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Gemma3nTextConfig

from midblock.analysis.weight_comparison import WeightComparison
from midblock.analysis.weight_totals import DENSE, Compared, WeightTotals
from midblock.checkpoints import LowRankDelta, Pair, Projection, Source
from midblock.metrics.catalogue import METRICS

WEIGHTS = frozenset(name for name, metric in METRICS.items() if metric.of_weights)
ROWS, LAYERS, SIDE = 70_000, 3, 81  # more entries than may be copied whole


class LargestDouble(TorchDispatchMode):
    """Hears of every tensor that torch makes, and keeps the size of the largest in float64."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float64:
            self.entries = max(self.entries, made.numel())
        return made


def of_every_layer(seed=0):
    """A pico Gemma 3n whose embedding for every layer is large; the rest is small."""
    config = Gemma3nTextConfig(
        vocab_size=300, vocab_size_per_layer_input=ROWS, hidden_size=32, hidden_size_per_layer_input=SIDE,
        intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        num_kv_shared_layers=0, laurel_rank=4, activation_sparsity_pattern=[0.0] * LAYERS,
        layer_types=["full_attention"] * LAYERS, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


def test_an_embedding_of_every_layer_is_never_there_in_float64():
    base = of_every_layer()
    tuned = copy.deepcopy(base)
    name = next(name for name, _ in base.named_parameters() if name.endswith("embed_tokens_per_layer.weight"))
    torch.manual_seed(1)
    tuned.get_parameter(name).data.add_(0.01 * torch.randn(ROWS, LAYERS * SIDE))
    pair = Pair.of_models(base, {"tuned": tuned}, None)
    with LargestDouble() as heard:
        comparison = WeightComparison(pair.base, pair.tuned[0], LAYERS, WEIGHTS, frozenset(range(-1, 4)), 4)
        found = {(row.module, row.metric): row.value for row in comparison.rows()}
    assert base.get_parameter(name).numel() > DENSE
    assert 0 < heard.entries <= DENSE // 2
    module = next(module for module, metric in found if metric == "delta_fro" and found[module, metric])
    change = (tuned.get_parameter(name).detach().double() - base.get_parameter(name).detach().double()).numpy()
    assert found[module, "delta_fro"] == pytest.approx(np.linalg.norm(change), rel=1e-9)
    assert found[module, "delta_spectral"] == pytest.approx(np.linalg.norm(change, 2), rel=1e-9)
    assert (module, "subspace_rotation_max") not in found


@pytest.mark.parametrize("delta", [None, LowRankDelta(torch.randn(50, 2), torch.randn(2, 8), 0.5)])
def test_rows_at_a_time_give_what_the_whole_gives(delta):
    before, after = Source(torch.randn(50, 8)), Source(torch.randn(50, 8), delta)
    what = Compared("head", Projection("head", 3, "head", "head", (50, 8)))
    whole, pieces = (WeightTotals("tuned", 3, WEIGHTS, 4) for _ in range(2))
    whole.add(what, before.value(), after.value())
    pieces.add_in_pieces(what, before, after)
    expected = {(row.module, row.metric): row.value for row in whole.rows()}
    found = {(row.module, row.metric): row.value for row in pieces.rows()}
    assert found.keys() == expected.keys()
    assert all(value == pytest.approx(expected[key], rel=1e-9) for key, value in found.items())


def test_rows_at_a_time_find_no_change_where_there_is_none():
    weight = Source(torch.randn(50, 8))
    totals = WeightTotals("tuned", 3, WEIGHTS, 4)
    totals.add_in_pieces(Compared("head", Projection("head", 3, "head", "head", (50, 8))), weight, weight)
    assert {row.value for row in totals.rows()} == {0.0}
