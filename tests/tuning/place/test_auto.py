"""`auto:RUN`: the shortest window that holds half of the change, from tables as analyses write them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midblock.base import LayerRow, LayerTable, MidblockError
from midblock.tuning.place.auto import plan_from_run, shortest_window, window_of

CURVES = st.lists(st.floats(0, 100), min_size=1, max_size=24)


def write(folder, *curves, blocks=6, model="tuned", extra=()):
    """A run folder with (metric, module, {layer: value}) curves."""
    rows = [
        LayerRow(model, layer, blocks, metric, value, n=10, module=module)
        for metric, module, values in curves
        for layer, value in values.items()
    ]
    LayerTable.from_rows([*rows, *extra]).write(folder)
    return folder


def own(*values, first=0):
    return ("change_own", "residual", dict(enumerate(values, start=first)))


def judged(*values, states, half=0.0):
    """Rows of own change with their states, each as wide as said."""
    of = zip(values, states, strict=True)
    return [
        LayerRow("tuned", i, len(values), "change_own", v, 10, v - half, v + half, state=state)
        for i, (v, state) in enumerate(of)
    ]


@pytest.mark.parametrize("state", ["below_floor", "as_random"])
def test_what_is_not_told_apart_is_no_ground_for_a_plan(tmp_path, state):
    values = [1, 1, 5, 6, 1, 1]
    weights = moved(*values)
    folder = write(tmp_path, weights, extra=judged(*values, states=[state] * 6))
    with pytest.raises(MidblockError, match=r"does not say where tuned was tuned: .*--num-token-samples") as caught:
        plan_from_run(folder, 6)
    assert "\n" not in str(caught.value)
    assert window_of(LayerTable.read(folder), "tuned") is None
    some = judged(*values, states=[state, state, state, "measured", state, state])
    assert plan_from_run(write(tmp_path / "some", weights, extra=some), 6).blocks == (2, 3)


@pytest.mark.parametrize(("half", "refused"), [(0.5, True), (0.01, False)])
def test_a_lead_within_the_intervals_is_no_ground_for_a_plan(tmp_path, half, refused):
    rows = judged(1, 1, 3, 3, 2.7, 2.7, states=["measured"] * 6, half=half)
    folder = write(tmp_path, extra=rows)
    if not refused:
        assert len(plan_from_run(folder, 6).blocks) == 3
        return
    with pytest.raises(MidblockError, match=r"the leading third of the depth leads by less than the intervals"):
        plan_from_run(folder, 6)


def moved(*values):
    return ("delta_rel", "block", dict(enumerate(values)))


@pytest.mark.parametrize(
    ("values", "window"),
    [
        ([1, 1, 1, 1], (0, 1)),
        ([0, 0, 5, 0], (2, 2)),
        ([1, 2, 3, 1, 1], (1, 2)),
        ([4, 1, 1, 4], (0, 1)),
        ([4, 1, 2, 4], (2, 3)),
        ([5, 1, 1, 4, 4], (3, 4)),
        ([1, 3, 1, 1], (1, 1)),
        ([1, 2, 2, 1, 0], (1, 2)),
        ([7], (0, 0)),
        ([0, 0, 0], (0, 0)),
    ],
)
def test_shortest_window_by_hand(values, window):
    assert shortest_window(np.array(values, float), 0.5) == window


def test_other_shares():
    values = np.array([1.0, 2, 4, 2, 1])
    assert shortest_window(values, 0.4) == (2, 2)
    assert shortest_window(values, 0.8) == (1, 3)
    assert shortest_window(values, 1.0) == (0, 4)


@given(values=CURVES, share=st.floats(0.05, 1.0))
def test_no_shorter_window_would_do_and_none_as_short_is_fuller(values, share):
    curve = np.array(values)
    first, last = shortest_window(curve, share)
    width, total = last - first + 1, curve.sum()
    held = {
        (start, end): curve[start : end + 1].sum() for start in range(len(curve)) for end in range(start, len(curve))
    }
    assert held[first, last] >= share * total * (1 - 1e-9)
    assert all(sum_ < share * total * (1 + 1e-9) for (start, end), sum_ in held.items() if end - start + 1 < width)
    same = [sum_ for (start, end), sum_ in held.items() if end - start + 1 == width]
    assert held[first, last] >= max(same) - 1e-9 * total


@given(values=CURVES, factor=st.floats(0.5, 20))
def test_the_unit_does_not_matter(values, factor):
    curve = np.round(np.array(values))  # no ties that rounding could decide
    assert shortest_window(curve, 0.5) == shortest_window(curve * 2.0 ** round(factor), 0.5)


def test_the_plan_is_the_window(tmp_path):
    plan = plan_from_run(write(tmp_path, own(1, 1, 5, 4, 1, 1)), 6)
    assert (plan.total, plan.blocks, plan.ranks) == (6, (2, 3), None)
    assert plan_from_run(str(tmp_path), 6) == plan
    assert plan_from_run(write(tmp_path / "half", own(0, 0, 5, 5, 0, 0)), 6).blocks == (2,)


def test_what_the_embedding_added_does_not_count(tmp_path):
    curve = own(100, 1, 1, 5, 4, 1, float("nan"), first=-1)
    assert plan_from_run(write(tmp_path, curve), 6).blocks == (2, 3)


def test_states_go_before_weights_and_weights_serve_without_states(tmp_path):
    both = write(tmp_path / "both", moved(9, 0, 0, 0, 0, 0), own(0, 0, 0, 0, 9, 0))
    assert plan_from_run(both, 6).blocks == (4,)
    alone = write(tmp_path / "alone", moved(9, 0, 0, 0, 0, 0))
    assert plan_from_run(alone, 6).blocks == (0,)
    silent = write(tmp_path / "silent", moved(0, 0, 9, 0, 0, 0), own(0, 0, 0, 0, 0, 0))
    assert plan_from_run(silent, 6).blocks == (2,)


def test_what_is_no_number_counts_nothing(tmp_path):
    values = (1, float("nan"), 1, 5, float("nan"), 1)
    assert plan_from_run(write(tmp_path, own(*values)), 6).blocks == (3,)


def test_the_first_tuned_model_counts_and_the_base_does_not(tmp_path):
    others = [
        LayerRow("base", 0, 6, "change_increment", 100.0, n=1),
        LayerRow("second", 5, 6, "change_increment", 100.0, n=1),
    ]
    assert plan_from_run(write(tmp_path, own(0, 0, 3, 0, 0, 0), extra=others), 6).blocks == (2,)


@pytest.mark.parametrize("total", [3, 5, 7, 12])
def test_another_depth_is_refused(tmp_path, total):
    with pytest.raises(MidblockError, match="is about a model of"):
        plan_from_run(write(tmp_path, own(1, 1, 5, 4, 1, 1)), total)


@pytest.mark.parametrize(
    "curves",
    [
        [("cka", "residual", {0: 0.5, 1: 0.4})],
        [own(0, 0, 0, 0, 0, 0)],
        [("delta_rel", "q_proj", {0: 1.0})],
        [("change_increment", "residual", {0: 1.0})],
    ],
)
def test_a_table_without_curves_says_so(tmp_path, curves):
    with pytest.raises(MidblockError, match=r"does not say which blocks were changed .*\(midblock analyze BASE TUNED"):
        plan_from_run(write(tmp_path, *curves), 6)


def test_a_table_of_the_base_alone_says_so(tmp_path):
    with pytest.raises(MidblockError, match="does not say which blocks were changed"):
        plan_from_run(write(tmp_path, own(1, 1, 5, 4, 1, 1), model="base"), 6)


def test_no_folder_and_no_table(tmp_path):
    with pytest.raises(MidblockError, match="no layer table at"):
        plan_from_run(tmp_path / "nowhere", 6)
    with pytest.raises(MidblockError, match="no layer table at"):
        plan_from_run(tmp_path, 6)
