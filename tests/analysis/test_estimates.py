import math
import re
from collections import defaultdict

import numpy as np
import pytest
import torch

from midblock.analysis.estimates import Estimates
from midblock.analysis.measure import ROUNDED_BASE, Measured
from midblock.base.clusters import Clusters
from midblock.metrics.catalogue import METRICS, computed_from, values
from midblock.metrics.geometry import Pooled
from midblock.metrics.metric import NULL, PRECISION_FLOOR, SPLIT_FLOOR, Metric
from midblock.metrics.similarity import Pairs
from midblock.trace import RowStatistic

N, DEEP, D, L = 24, 10, 6, 2
LAYERS = (-1, 0, 1, 2)
ALL = frozenset(name for name, metric in METRICS.items() if not metric.by_expert)  # those: test_routing_rows.py
UNPAIRED, PAIRED = (computed_from("pooled", ALL, paired=paired) for paired in (False, True))
RESIDUAL = [name for name, metric in METRICS.items() if name in ALL and not metric.of_weights]


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rows_between(models=("base", "sft"), amount=0.3):
    """Rows of one pass, drawn instead of measured: a tuned model differs from the base by `amount` a layer."""
    rows, deep = {}, torch.arange(0, 2 * DEEP, 2)
    for layer in LAYERS:
        base = gaussian(N, D, seed=layer + 1) + 2 * gaussian(D, seed=50)
        for place in range(len(models)):
            change = 0 if place == 0 else amount * (layer + 2) * gaussian(N, D, seed=100 * place + layer)
            rows[f"pooled|{layer}|{place}"] = RowStatistic(torch.arange(N), base + change)
            for view in range(2):
                noise = 0.2 * gaussian(N, D, seed=1000 + 10 * view + layer)
                rows[f"view{view}|{layer}|{place}"] = RowStatistic(torch.arange(N), base + change + noise)
            tokens = torch.rand(DEEP, 5, generator=torch.Generator().manual_seed(layer + 7 * place)).double()
            rows[f"tokens|{layer}|{place}"] = RowStatistic(torch.arange(0, 2 * DEEP, 2), tokens)
            lens = torch.rand(DEEP, 2, generator=torch.Generator().manual_seed(layer + 9 * place)).double() * amount
            lens = torch.stack([lens[:, 0], 1 - lens[:, 1]], dim=1)
            if place and 0 <= layer < L:
                alone = base + amount * gaussian(N, D, seed=500 + 10 * place + layer)
                both = zip(("own", "reverse"), (alone, base + 0.5 * change), strict=True)
                rows |= {f"{kind}|{layer}|{place}": RowStatistic(deep, values[deep]) for kind, values in both}
            if 0 <= layer < L:
                of_counts = torch.rand(N, 4, generator=torch.Generator().manual_seed(layer + 3 * place)).double() + 0.1
                rows[f"loads|{layer}|{place}"] = RowStatistic(torch.arange(N), of_counts)
            if place and 0 <= layer < L:
                of_choices = 0.6 * torch.rand(N, 6, generator=torch.Generator().manual_seed(layer + place)).double()
                rows[f"routers|{layer}|{place}"] = RowStatistic(torch.arange(N), of_choices)
            if place and layer == L:
                sums = torch.rand(DEEP, 3, generator=torch.Generator().manual_seed(place)).double()
                sums[:, 2] = 4
                rows |= {f"{kind}|{layer}|{place}": RowStatistic(deep, sums) for kind in ("heads", "general")}
            if place:
                rows[f"lens|{layer}|{place}"] = RowStatistic(torch.arange(0, 2 * DEEP, 2), lens)
        rows[f"pooled|{layer}|{ROUNDED_BASE}"] = RowStatistic(
            deep, base[deep] + 0.01 * gaussian(DEEP, D, seed=layer + 70)
        )
        rows[f"lens|{layer}|{ROUNDED_BASE}"] = RowStatistic(deep, torch.full((DEEP, 2), 0.01, dtype=torch.float64))
    return rows


def columns_of(rows, wanted):
    """The rows of a pass that was asked for fewer metrics."""
    kept = {}
    for key, stat in rows.items():
        source = key.split("|")[0]
        if source in ("tokens", "lens", "routers"):
            places = [place for place, name in enumerate(computed_from(source, ALL)) if name in wanted]
            stat = RowStatistic(stat.index, stat.values[:, places])
        kept[key] = stat
    return kept


def estimate(rows, models=("sft",), wanted=ALL, seed=0, measured=("sft",), clusters=None):
    of = Measured(columns_of(rows, wanted), measured), models, wanted, LAYERS, L, "some:data", seed
    made = Estimates(*of, general="other:data", clusters=clusters).rows()
    table = {}
    for row in made:
        assert (row.model, row.layer, row.metric) not in table
        table[row.model, row.layer, row.metric] = row
    return table


@pytest.fixture(scope="module")
def rows():
    return rows_between()


@pytest.fixture(scope="module")
def table(rows):
    return estimate(rows)


def values_of(table, suffix=""):
    return {key: row.value for key, row in table.items() if key[2].endswith(suffix) and ("." in key[2]) == bool(suffix)}


@pytest.mark.parametrize("name", RESIDUAL)
def test_every_metric_is_there_for_every_model_and_layer(table, name):
    models = ["sft"] if METRICS[name].paired else ["base", "sft"]
    # the final norm changes the space, so nothing can be said to be added there
    blocks = LAYERS[1:-1]
    places = {"own": blocks, "routers": blocks, "loads": blocks, "heads": LAYERS[-1:]}
    layers = places.get(METRICS[name].source, LAYERS)
    layers = LAYERS[:-1] if name == "change_increment" else layers
    found = {(model, layer) for model, layer, metric in table if metric == name}
    assert found == {(model, layer) for model in models for layer in layers}


def test_nothing_comes_but_metrics_and_their_references(table):
    for _, _, metric in table:
        name, _, suffix = metric.partition(".")
        assert name in RESIDUAL
        assert suffix == "" or f".{suffix}" in (NULL, SPLIT_FLOOR, PRECISION_FLOOR)


@pytest.mark.parametrize("name", RESIDUAL)
def test_intervals_hold_their_value_and_keep_to_the_bounds(table, name):
    low, high = METRICS[name].bounds
    for (_, _, metric), row in table.items():
        if metric == name and not METRICS[name].interval:
            assert math.isnan(row.low)
            assert math.isnan(row.high)
        elif metric == name:
            assert row.low - 1e-9 <= row.value <= row.high + 1e-9
            assert low is None or row.low >= low
            assert high is None or row.high <= high


def test_variants_of_one_question_are_resampled_together(rows, table):
    """Prompts 2k and 2k + 1 are variants of one question; half of those at even places have token-level rows."""
    clusters = Clusters.of([str(place // 2) for place in range(N)])
    found = estimate(rows, clusters=clusters)
    assert found.keys() == table.keys()
    moved = set()
    for key, row in found.items():
        assert (row.value, row.n) == pytest.approx((table[key].value, table[key].n), rel=1e-12)
        moved |= (
            {key[2]} if (row.low, row.high) != pytest.approx((table[key].low, table[key].high), nan_ok=True) else set()
        )
    # of the token-level ones no two share a question
    deep = ("tokens", "lens", "own", "heads")
    assert moved == {name for name in RESIDUAL if METRICS[name].interval and METRICS[name].source not in deep}


def test_samples_are_prompts(table):
    for (_, _, metric), row in table.items():
        source = METRICS[metric.partition(".")[0]].source
        rounded = metric.endswith(PRECISION_FLOOR)
        assert row.n == (DEEP if rounded or source in ("tokens", "lens", "own", "heads") else N)
        assert row.dataset == ("other:data" if metric.startswith("kl_general") else "some:data")
        assert row.blocks == L
        assert row.module == "residual"


@pytest.mark.parametrize("layer", LAYERS)
def test_pooled_values_are_those_of_the_whole_sample(rows, table, layer):
    base, tuned = (rows[f"pooled|{layer}|{model}"].values for model in (0, 1))
    expected = {("base", name): value.mean() for name, value in values(UNPAIRED, Pooled.whole(base)).items()}
    expected |= {("sft", name): value.mean() for name, value in values(UNPAIRED, Pooled.whole(tuned)).items()}
    expected |= {("sft", name): value.mean() for name, value in values(PAIRED, Pairs.whole(base, tuned)).items()}
    for (model, name), value in expected.items():
        assert table[model, layer, name].value == pytest.approx(float(value), rel=1e-9)


@pytest.mark.parametrize("layer", LAYERS)
def test_means_are_numpys(rows, table, layer):
    X, Y = (rows[f"pooled|{layer}|{model}"].values.numpy() for model in (0, 1))
    norm = np.linalg.norm
    assert table["base", layer, "l2_norm"].value == pytest.approx(norm(X, axis=1).mean())
    assert table["sft", layer, "l2_norm"].value == pytest.approx(norm(Y, axis=1).mean())
    assert table["sft", layer, "change_intensity"].value == pytest.approx(norm(X - Y, axis=1).mean())
    cosine = ((X * Y).sum(1) / norm(X, axis=1) / norm(Y, axis=1)).mean()
    assert table["sft", layer, "cosine_similarity"].value == pytest.approx(cosine)
    tokens = rows[f"tokens|{layer}|1"].values.numpy().mean(0)
    for place, name in enumerate(("prompt_entropy", "prompt_entropy_renyi2", "curvature", "sparsity")):
        assert table["sft", layer, name].value == pytest.approx(tokens[place])
    lens = rows[f"lens|{layer}|1"].values.numpy().mean(0)
    assert [table["sft", layer, name].value for name in ("logit_kl", "logit_agreement")] == pytest.approx(lens.tolist())


def test_change_is_added_over_what_the_layer_below_handed_on(rows, table):
    change = {layer: rows[f"pooled|{layer}|1"].values - rows[f"pooled|{layer}|0"].values for layer in LAYERS}
    for layer in LAYERS[:-1]:
        received = change[layer - 1] if layer > -1 else 0
        scale = rows[f"pooled|{layer}|0"].values.norm(dim=1).mean()
        expected = float((change[layer] - received).norm(dim=1).mean() / scale)
        assert table["sft", layer, "change_increment"].value == pytest.approx(expected)


def test_the_base_against_itself(rows):
    same = {key: rows[re.sub(r"\|1$", "|0", key)] for key in rows if key.startswith(("pooled", "tokens"))}
    table = estimate(same)
    for layer in LAYERS:
        for name in ("cka", "cka_debiased"):
            row = table["sft", layer, name]
            assert (row.value, row.low, row.high) == (1, 1, 1)
        for name in ("change_intensity", "change_intensity_relative", "mean_shift", "mean_shift_relative"):
            row = table["sft", layer, name]
            assert (row.value, row.low, row.high) == (0, 0, 0)
        assert table["sft", layer, "procrustes"].value == pytest.approx(0, abs=1e-12)
        assert table["sft", layer, "cosine_similarity"].value == pytest.approx(1, abs=1e-12)
        if layer < L:
            assert table["sft", layer, "change_increment"].value == 0


def test_models_are_estimated_as_each_alone():
    rows = rows_between(("base", "sft", "dpo"))
    together = estimate(rows, models=("sft", "dpo"), measured=("sft", "dpo"))
    alone = estimate(rows, models=("dpo",), measured=("sft", "dpo"))
    for key, row in alone.items():
        ours = [row.value, row.low, row.high]
        theirs = [together[key].value, together[key].low, together[key].high]
        assert ours == pytest.approx(theirs, rel=1e-9, nan_ok=True)


def test_the_null_is_far_from_a_small_change_and_bounds_itself(table):
    for name in ("cka", "cka_debiased", "cosine_similarity"):
        for layer in LAYERS:
            null = table["sft", layer, name + NULL]
            assert null.low < null.value < null.high
            assert table["sft", layer, name].value > null.high
    assert abs(table["sft", 0, "cka_debiased" + NULL].value) < 0.05


def test_the_split_floor_is_about_as_large_as_the_interval(table):
    """It says what choosing half of the prompts does: more than nothing, and no more than a few widths."""
    for layer in LAYERS:
        for name in ("l2_norm", "dataset_entropy", "prompt_entropy", "effective_rank"):
            row = table["base", layer, name]
            assert 0 < table["base", layer, name + SPLIT_FLOOR].value < 4 * (row.high - row.low)


def test_split_floors_are_the_bases_only(table):
    assert {model for model, _, metric in table if metric.endswith(SPLIT_FLOOR)} == {"base"}
    named = {metric.removesuffix(SPLIT_FLOOR) for _, _, metric in table if metric.endswith(SPLIT_FLOOR)}
    assert not any(METRICS[name].paired for name in named)


def test_the_precision_floor_compares_the_rounded_prompts_with_their_own_selves(rows, table):
    deep = rows[f"pooled|1|{ROUNDED_BASE}"]
    base = rows["pooled|1|0"].values[deep.index]
    found = {key[2]: row.value for key, row in table.items() if key[:2] == ("base", 1)}
    for name, value in values(PAIRED, Pairs.whole(base, deep.values)).items():
        assert found[name + PRECISION_FLOOR] == pytest.approx(float(value.mean()))
    assert found["change_intensity" + PRECISION_FLOOR] == pytest.approx(float((base - deep.values).norm(dim=1).mean()))
    assert found["logit_kl" + PRECISION_FLOOR] == pytest.approx(0.01)
    assert found["cosine_similarity" + PRECISION_FLOOR] > 0.999


def test_the_order_in_which_prompts_are_numbered_changes_no_value(rows, table):
    """It changes which prompts form a group, and so the intervals, a little."""
    flipped = {key: RowStatistic(stat.index, stat.values.flip(0)) for key, stat in rows.items()}
    # these are read beside all prompts' rows, of which they are other ones then
    beside = (f"|{ROUNDED_BASE}", "own", "reverse")
    flipped = {key: stat for key, stat in flipped.items() if not key.startswith(beside) and not key.endswith(beside)}
    found = values_of(estimate(flipped))
    expected = {key: value for key, value in values_of(table).items() if METRICS[key[2]].source != "own"}
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_same_seed_gives_the_same_table_and_another_seed_other_intervals(rows, table):
    assert repr(estimate(rows, seed=0)) == repr(table)
    other = estimate(rows, seed=1)
    assert values_of(other) == values_of(table)
    moved = [key for key, row in table.items() if "." not in key[2] and row.low != other[key].low]
    assert len(moved) > len(values_of(table)) / 2


@pytest.mark.parametrize("name", RESIDUAL)
def test_a_metric_wanted_alone_is_the_same(rows, table, name):
    found = estimate(rows, wanted=frozenset({name}))
    assert {key[2].partition(".")[0] for key in found} == {name}
    for key, row in found.items():
        ours, theirs = table[key], row
        assert [theirs.value, theirs.low, theirs.high] == pytest.approx([ours.value, ours.low, ours.high], nan_ok=True)


def test_what_was_not_measured_is_left_out():
    rows = {
        key: stat
        for key, stat in rows_between().items()
        if key.startswith("pooled") and not key.endswith(f"|{ROUNDED_BASE}")
    }
    found = {key[2].partition(".")[0] for key in estimate(rows)}
    assert found == {name for name in RESIDUAL if METRICS[name].source == "pooled"}


def test_a_value_no_prompt_has_is_empty_and_no_error(rows):
    """Prompts of two tokens at the embedding, say: no curvature, n = 0."""
    tokens = rows["tokens|0|1"].values.clone()
    tokens[:, 2] = math.nan
    row = estimate({**rows, "tokens|0|1": RowStatistic(rows["tokens|0|1"].index, tokens)})["sft", 0, "curvature"]
    assert row.n == 0
    assert math.isnan(row.value)


def test_prompts_without_a_value_are_counted_out(rows):
    tokens = rows["tokens|0|1"].values.clone()
    tokens[3:, 2] = math.nan
    row = estimate({**rows, "tokens|0|1": RowStatistic(rows["tokens|0|1"].index, tokens)})["sft", 0, "curvature"]
    assert row.n == 3
    assert row.value == pytest.approx(float(tokens[:3, 2].mean()))


def test_a_value_that_cannot_be_computed_costs_its_row_and_a_note(rows, table):
    flat = {**rows, "pooled|1|1": RowStatistic(torch.arange(N), torch.ones(N, D, dtype=torch.float64))}
    made = Estimates(Measured(columns_of(flat, ALL), ("sft",)), ("sft",), ALL, LAYERS, L, "some:data", 0)
    found = {(row.model, row.layer, row.metric): row for row in made.rows()}
    lost = {"cka", "cka_debiased", "cosine_centered", "procrustes", "effective_rank_centered", "intrinsic_dimension"}
    missing = {key for key in table if key not in found}
    assert missing == {("sft", 1, name + kind) for name in lost for kind in ("", NULL)} & table.keys()
    assert all(math.isfinite(row.value) for row in found.values())
    undefined = [note for note in made.notes() if "not defined" in note]
    assert sorted(undefined) == sorted(
        f"{name} of sft is not defined at layer 1 (of {N} prompts too few differ there): left out." for name in lost
    )
    assert f"The {N} prompts have 1 different states at layer 1 of sft" in made.notes()[0]


def test_layers_without_a_value_are_told_together(rows):
    ones = RowStatistic(torch.arange(N), torch.ones(N, D, dtype=torch.float64))
    flat = {**rows, **{f"pooled|{layer}|0": ones for layer in (-1, 0, 2)}}
    wanted = frozenset({"intrinsic_dimension"})
    made = Estimates(Measured(columns_of(flat, wanted), ("sft",)), ("sft",), wanted, LAYERS, L, "", 0)
    assert {(row.model, row.layer) for row in made.rows()} == {("base", 1), *(("sft", layer) for layer in LAYERS)}
    assert made.undefined.notes() == [
        f"intrinsic_dimension of base is not defined at layers -1 to 0, 2 (of {N} prompts too few differ there): "
        "left out."
    ]


def test_prompts_that_repeat_have_the_states_of_the_first(rows):
    """Batches padded otherwise round otherwise, and a condition number would be that of the rounding."""
    repeats = {18: 2, 23: 1}  # the second pair is not among the rounded base's prompts
    noisy, exact = dict(rows), dict(rows)
    for key, stat in rows.items():
        if key.startswith("pooled"):
            values, same = stat.values.clone(), stat.values.clone()
            places = {int(index): place for place, index in enumerate(stat.index)}
            for later, first in repeats.items():
                if later in places:
                    same[places[later]] = values[places[first]]
                    values[places[later]] = values[places[first]] * (1 + 1e-7)
            noisy[key], exact[key] = RowStatistic(stat.index, values), RowStatistic(stat.index, same)
    wanted = frozenset({"intrinsic_dimension", "condition_number", "cka_debiased", "change_intensity"})
    of = ("sft",), wanted, LAYERS, L, "", 0, False  # nulls and split floors keep repeats together besides
    made = Estimates(Measured(columns_of(noisy, wanted), ("sft",)), *of, repeats=repeats)
    plain = Estimates(Measured(columns_of(exact, wanted), ("sft",)), *of)
    assert list(map(repr, made.rows())) == list(map(repr, plain.rows()))
    assert made.notes() == []


def test_progress_hears_of_every_layer(rows):
    heard = defaultdict(float)
    list(
        Estimates(Measured(rows, ("sft",)), ("sft",), ALL, LAYERS, L, "", 0).rows(
            lambda n: heard.update(n=heard["n"] + n)
        )
    )
    assert heard["n"] == len(LAYERS)


def test_what_rounding_below_handed_on_is_no_increment(rows, table):
    deep = rows[f"pooled|1|{ROUNDED_BASE}"].index
    change = {at: rows[f"pooled|{at}|{ROUNDED_BASE}"].values - rows[f"pooled|{at}|0"].values[deep] for at in (0, 1)}
    scale = rows["pooled|1|0"].values[deep].norm(dim=1).mean()
    expected = float((change[1] - change[0]).norm(dim=1).mean() / scale)
    assert table["base", 1, "change_increment" + PRECISION_FLOOR].value == pytest.approx(expected)
    assert ("base", L, "change_increment" + PRECISION_FLOOR) not in table


def test_every_set_of_pairs_has_a_null_and_every_set_of_views_a_floor(table):
    for layer in LAYERS:
        assert table["sft", layer, "cosine_centered"].value > table["sft", layer, "cosine_centered" + NULL].high
        assert table["sft", layer, "procrustes"].value < table["sft", layer, "procrustes" + NULL].low
        assert table["base", layer, "lidar" + SPLIT_FLOOR].value > 0
        assert table["base", layer, "dime" + SPLIT_FLOOR].value > 0


def spread(pooled):
    """A metric of a third party: the largest coordinate's range over a set of prompts."""
    chosen = pooled.states.X[pooled.keep]
    return (chosen.amax(1) - chosen.amin(1)).amax(1)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_new_metric_is_one_function_and_one_row(rows, monkeypatch, layer):
    row = Metric("Range", "activation", "pooled", False, "jackknife", "Widest range.", (0, None), compute=spread)
    monkeypatch.setitem(METRICS, "spread", row)
    found = estimate(rows, wanted=frozenset({"spread"}))
    for place, model in enumerate(("base", "sft")):
        X = rows[f"pooled|{layer}|{place}"].values.numpy()
        assert found[model, layer, "spread"].value == np.ptp(X, axis=0).max()
        assert found[model, layer, "spread"].low < found[model, layer, "spread"].high
    assert found["base", layer, "spread" + SPLIT_FLOOR].value > 0


def test_a_prompt_whose_states_are_zero_costs_no_row(rows, table):
    """Neither a metric nor its null nor a floor: such a prompt is counted out of what asks for its direction."""
    zeroed = dict(rows)
    for key, found in rows.items():
        if key.startswith(("pooled", "view", "own", "reverse")):
            values = found.values.clone()
            values[found.index == 4] = 0
            zeroed[key] = RowStatistic(found.index, values)
    made = estimate(zeroed)
    assert made.keys() == table.keys()
    assert not any(math.isnan(row.value) for row in made.values())
    assert made["sft", 1, "cosine_similarity"].n == N - 1


def test_answers_that_are_not_there_are_told(rows):
    none = {key: stat for key, stat in rows.items() if not key.startswith("heads")}
    none[f"heads|{L}|1"] = RowStatistic(torch.arange(0, 2 * DEEP, 2), torch.zeros(DEEP, 3, dtype=torch.float64))
    made = Estimates(Measured(none, ("sft",)), ("sft",), frozenset({"kl_answers"}), LAYERS, L, "some:data", 0)
    (row,) = made.rows()
    assert math.isnan(row.value)
    assert row.n == 0
    assert made.notes() == ["kl_answers of sft is not defined at layer 2 (no prompt has what it needs): left out."]
