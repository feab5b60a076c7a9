import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midblock.analysis.spread import Spread
from midblock.analysis.summary import summarize
from midblock.base import LayerRow, LayerTable
from midblock.metrics.metric import PRECISION_FLOOR

few = settings(deadline=None, max_examples=25)
L = 6


def rows_of(metric, values, model="sft", module="residual", start=0):
    return [LayerRow(model, start + i, L, metric, float(v), 10, module=module) for i, v in enumerate(values)]


def table_of(added=None, weights=None, change=None, model="sft"):
    rows = []
    if added is not None:
        rows += rows_of("change_increment", added, model) + rows_of("change_own", added, model)
    if weights is not None:
        rows += rows_of("delta_rel", weights, model, "block")
    if change is not None:
        rows += rows_of("change_intensity_relative", change, model)
    return rows


def spread(amount, layers=None):
    layers = np.arange(len(amount)) if layers is None else layers
    return Spread.of(pd.DataFrame({"layer": layers}), np.array(amount, dtype=float), L)


def test_an_even_spread_is_centred():
    found = spread([1] * L)
    assert found.center == pytest.approx(0.5)
    assert found.thirds == pytest.approx((1 / 3, 1 / 3, 1 / 3))


@pytest.mark.parametrize("block", range(L))
def test_all_in_one_block(block):
    amount = [0.0] * L
    amount[block] = 3
    found = spread(amount)
    assert found.peak_block == block
    assert found.center == pytest.approx((block + 0.5) / L)
    assert found.thirds[block // 2] == 1


@pytest.mark.parametrize("blocks", range(1, 41))
def test_an_even_spread_is_a_third_each_at_every_depth(blocks):
    found = Spread.of(pd.DataFrame({"layer": range(blocks)}), np.ones(blocks), blocks)
    assert found.thirds == pytest.approx((1 / 3,) * 3)


@pytest.mark.parametrize(
    ("blocks", "block", "thirds"),
    [
        (4, 1, (1 / 3, 2 / 3, 0)),  # 1/4 to 2/4: one of its three twelfths lies below 1/3
        (5, 1, (2 / 3, 1 / 3, 0)),
        (7, 4, (0, 2 / 3, 1 / 3)),
        (2, 0, (2 / 3, 1 / 3, 0)),
        (1, 0, (1 / 3, 1 / 3, 1 / 3)),
        (10, 9, (0, 0, 1)),
    ],
)
def test_a_block_that_lies_in_two_thirds_is_parted(blocks, block, thirds):
    found = Spread.of(pd.DataFrame({"layer": range(blocks)}), np.eye(blocks)[block], blocks)
    assert found.thirds == pytest.approx(thirds)


@pytest.mark.parametrize("blocks", [4, 5, 7, 10, 30])
def test_an_even_change_is_called_even_at_every_depth(blocks):
    rows = [LayerRow("sft", layer, blocks, "delta_rel", 0.1, 10, module="block") for layer in range(blocks)]
    assert "sft's weights moved evenly over depth" in summarize(LayerTable.from_rows(rows))["headline"]


def test_only_decoder_blocks_count():
    assert spread([9, 1, 0, 0, 0, 0, 1, 9], layers=np.arange(-1, L + 1)).thirds == (0.5, 0, 0.5)


@pytest.mark.parametrize("amount", [[0] * L, [1, np.nan, 1, 1, 1, 1], []])
def test_nothing_to_spread(amount):
    assert spread(amount) is None


@few
@given(st.lists(st.floats(0.01, 100), min_size=L, max_size=L), st.floats(0.01, 100))
def test_spread_is_numpys_average_and_ignores_scale(amount, scale):
    found, scaled = spread(amount), spread([scale * each for each in amount])
    assert found.center == pytest.approx(np.average((np.arange(L) + 0.5) / L, weights=amount))
    assert sum(found.thirds) == pytest.approx(1)
    assert scaled.thirds == pytest.approx(found.thirds)
    assert amount[found.peak_block] == max(amount)


@few
@given(st.lists(st.floats(0.01, 100), min_size=L, max_size=L))
def test_spread_upside_down(amount):
    found, flipped = spread(amount), spread(amount[::-1])
    assert flipped.center == pytest.approx(1 - found.center)
    assert flipped.thirds == pytest.approx(found.thirds[::-1])


def test_the_reading_names_the_third_its_share_and_the_block():
    summary = summarize(LayerTable.from_rows(table_of(added=[1, 1, 1, 1, 2, 4], weights=[1, 6, 1, 1, 1, 0])))
    facts = summary["models"][0]
    assert facts["representation_depth"]["thirds"] == pytest.approx((0.2, 0.2, 0.6))
    assert facts["own_depth"] == facts["representation_depth"]
    assert facts["peak_block"] == 5
    assert "tuning acts most in the upper third (60 %), most of all in block 5;" in facts["reading"]
    assert facts["reading"].endswith("its states carry most change across block 5.")
    assert "most in the lower third (70 %), most in block 1" in facts["reading"]
    assert summary["headline"] == facts["reading"]


def test_an_even_change_of_weights_is_called_even():
    reading = summarize(LayerTable.from_rows(table_of(weights=[1] * L)))["headline"]
    assert "sft's weights moved evenly over depth" in reading


def test_equal_models_do_not_differ():
    summary = summarize(LayerTable.from_rows(table_of(added=[0] * L, weights=[0] * L, change=[0] * L)))
    assert summary["headline"] == "sft does not differ from the base."
    assert summary["models"][0]["half_depth"] is None


def test_half_depth_is_where_half_of_the_last_change_is_reached():
    facts = summarize(LayerTable.from_rows(table_of(change=[0.1, 0.2, 0.3, 0.5, 0.6, 0.9])))["models"][0]
    assert facts["half_depth"] == pytest.approx(4 / L)
    assert facts["last_block"] == {"change_intensity_relative": 0.9}


def test_the_final_norm_is_no_last_block():
    rows = rows_of("cka_debiased", [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.1])
    assert summarize(LayerTable.from_rows(rows))["models"][0]["last_block"] == {"cka_debiased": 0.4}


BELOW_BFLOAT16 = "This is below what bfloat16 could show, but about"


@pytest.mark.parametrize(
    ("dtype", "floor", "said"),
    [
        (torch.bfloat16, 0.5, "This is no more than rounding to bfloat16 changes."),
        (torch.float16, 0.5, "This is no more than rounding to float16 changes."),
        (torch.float32, 0.5, f"{BELOW_BFLOAT16} 52,000 times what float32 rounds."),
        (torch.float32, 0.4 * 2**15, f"{BELOW_BFLOAT16} 2 times what float32 rounds."),
        (torch.float64, 0.5, f"{BELOW_BFLOAT16} 3e+13 times what float64 rounds."),
        (torch.float32, 0.4 * 2**17, "rounding to float32 changes, as estimated from what rounding to bfloat16 does."),
        (torch.bfloat16, 0.3, ""),
        (torch.float32, 0.3, ""),
        (torch.bfloat16, np.nan, ""),
    ],
)
def test_a_change_is_held_against_the_rounding_of_the_run_s_own_precision(dtype, floor, said):
    """What float32 shows is real, however little of it bfloat16 would."""
    rows = table_of(added=[1] * L, change=[0.4] * L)
    rows += rows_of("change_intensity_relative" + PRECISION_FLOOR, [floor] * L, model="base")
    headline = summarize(LayerTable.from_rows(rows), dtype=dtype)["headline"]
    assert headline.endswith(said or "evenly over depth.")
    assert ("rounding" in headline or "rounds" in headline) == bool(said)


def test_several_models_share_a_headline():
    rows = table_of(added=[5, 1, 1, 1, 1, 1], model="sft") + table_of(added=[0, 0, 0, 0, 1, 1], model="dpo")
    summary = summarize(LayerTable.from_rows([*rows, *table_of(added=[0] * L, model="same")]))
    assert [facts["name"] for facts in summary["models"]] == ["sft", "dpo", "same"]
    assert summary["headline"].endswith(
        "sft most in the lower third (60 %); dpo most in the upper third (100 %); same nowhere on these prompts."
    )


def test_a_table_of_the_base_alone():
    table = LayerTable.from_rows(rows_of("curvature", [0.5] * L, model="base"))
    assert summarize(table) == {"headline": "Nothing was compared.", "models": []}


def test_what_was_not_measured_is_not_called_unchanged():
    rows = [LayerRow("sft", layer, L, "cka_debiased", 0.9, 10) for layer in range(L)]
    reading = summarize(LayerTable.from_rows(rows))["headline"]
    assert "not measured" in reading
    assert "does not differ" not in reading


def test_some_blocks_only_have_no_thirds_of_the_model():
    rows = [LayerRow("sft", layer, L, "change_increment", 0.1 * layer, 10) for layer in (2, 3)]
    summary = summarize(LayerTable.from_rows(rows))
    assert summary["models"][0]["representation_depth"] == {"center": None, "thirds": None, "peak_block": 3}
    assert "added among the blocks that were measured, most across block 3" in summary["headline"]
    assert "which blocks were changed themselves was not measured" in summary["headline"]


def test_a_number_that_is_none_is_left_out():
    """States of zero weights have no direction: their similarity is no number, and JSON has no word for that."""
    rows = [*table_of(change=[0.1] * L), *rows_of("cosine_similarity", [0.9] * (L - 1) + [float("nan")])]
    (facts,) = summarize(LayerTable.from_rows(rows))["models"]
    assert facts["last_block"] == {"change_intensity_relative": 0.1}


def test_a_block_that_only_reacts_is_not_told_as_changed():
    """Blocks 2 and 3 were tuned; what lies above makes more of it than they did."""
    rows = [*rows_of("change_own", [0, 0, 2, 1, 0, 0]), *rows_of("change_increment", [0, 0, 2, 2, 3, 9])]
    rows += rows_of("delta_rel", [0, 0, 1, 1, 0, 0], module="block")
    facts = summarize(LayerTable.from_rows(rows))["models"][0]
    assert facts["peak_block"] == 2
    assert facts["own_depth"]["thirds"] == pytest.approx((0, 1, 0))
    assert facts["reading"].startswith("sft's tuning acts most in the middle third (100 %), most of all in block 2;")


def test_the_headline_is_about_the_tokens_without_sinks():
    rows = [*rows_of("change_own", [9, 0, 0, 0, 0, 0]), *rows_of("change_own.no_sinks", [0, 0, 0, 0, 0, 1])]
    assert summarize(LayerTable.from_rows(rows))["models"][0]["peak_block"] == 5
