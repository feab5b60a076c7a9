import pytest
from hypothesis import given
from hypothesis import strategies as st

from midblock.base import LayerPlan, MidblockError


@pytest.mark.parametrize(
    ("text", "total", "blocks", "printed"),
    [
        ("all", 4, (0, 1, 2, 3), "0-3"),
        (" all ", 1, (0,), "0"),
        ("01100", 5, (1, 2), "1-2"),
        ("01100", 10, (2, 3, 4, 5), "2-5"),
        ("01", 5, (3, 4), "3-4"),  # 5 blocks in 2 segments: 3 and 2
        ("101", 3, (0, 2), "0,2"),
        ("6-17", 30, tuple(range(6, 18)), "6-17"),
        ("6,7,9-12", 30, (6, 7, 9, 10, 11, 12), "6-7,9-12"),
        (" 6 , 7 , 9 - 12 ", 30, (6, 7, 9, 10, 11, 12), "6-7,9-12"),
        ("blocks:7,6,6", 30, (6, 7), "6-7"),
        ("5", 30, (5,), "5"),
        ("10-10", 30, (10,), "10-10"),  # alone, `10` would be read as two segments
        ("0.2-0.8", 10, (2, 3, 4, 5, 6, 7), "2-7"),
        (".5-1", 4, (2, 3), "2-3"),
        ("0-0.5", 4, (0, 1), "0-1"),
    ],
)
def test_notations(text, total, blocks, printed):
    plan = LayerPlan.parse(text, total)
    assert (plan.total, plan.blocks, plan.ranks) == (total, blocks, None)
    assert str(plan) == printed


@pytest.mark.parametrize(
    ("text", "blocks", "ranks"),
    [
        ("0,42,42,0,0", (2, 3, 4, 5), (42, 42, 42, 42)),
        ("8,4,2,1,1", tuple(range(10)), (8, 8, 4, 4, 2, 2, 1, 1, 1, 1)),
        ("ranks:8,16,32,0,0", (0, 1, 2, 3, 4, 5), (8, 8, 16, 16, 32, 32)),
        ("ranks:4", tuple(range(10)), (4,) * 10),
    ],
)
def test_ranks_by_segment(text, blocks, ranks):
    plan = LayerPlan.parse(text, 10)
    assert (plan.blocks, plan.ranks) == (blocks, ranks)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read the layer plan ''"),
        ("top", "cannot read the layer plan 'top'.*01100"),
        ("1,", "cannot read the layer plan '1,'"),
        ("-3", "cannot read the layer plan '-3'"),
        ("1.5", "cannot read the layer plan"),
        ("layers:3", "cannot read the layer plan 'layers:3'"),
        ("ranks:1-3", "ranks are single numbers"),
        ("6,12", "names block 12; the model has 0 to 9"),
        ("8-10", "names block 10; the model has 0 to 9"),
        ("000", "selects none of the model's 10 blocks"),
        ("0,0", "selects none"),
        ("6-3", "selects none"),
        ("0.8-0.2", "selects none"),
        ("0.51-0.52", "selects none"),
        ("01010101010", "has 11 segments, the model 10 blocks"),
        ("ranks:1,2,3,4,5,6,7,8,9,10,11", "has 11 segments"),
        ("auto:runs/x", "not there yet"),
        ("0-999999999999", r"'0-999999999999' names block 10; the model has 0 to 9"),
        ("3," + "9" * 5000, "names block 9{18}; the model has 0 to 9"),
        ("9" * 5000 + "-1", "selects none"),
        ("999999999999-999999999999999", "names block 999999999999;"),
        ("ranks:" + "9" * 5000 + ",x", "cannot read the layer plan '.{60}…'"),
        ("01" * 5000, "has 10000 segments, the model 10 blocks"),
    ],
)
def test_errors_name_what_is_wrong(text, message):
    with pytest.raises(MidblockError, match=message):
        LayerPlan.parse(text, 10)


def test_a_message_is_short_however_long_the_plan():
    for text in ("9" * 5000, "0," * 5000, "x" * 5000, "ranks:" + "9," * 5000 + "9", "0" * 5000):
        with pytest.raises(MidblockError) as raised:
            LayerPlan.parse(text, 10)
        assert len(str(raised.value)) < 250


def test_leading_zeros_are_no_digits():
    assert LayerPlan.parse("0" * 5000 + "5-" + "0" * 30 + "7", 10).blocks == (5, 6, 7)


totals_and_blocks = st.integers(1, 120).flatmap(
    lambda total: st.tuples(st.just(total), st.sets(st.integers(0, total - 1), min_size=1))
)


@given(totals_and_blocks)
def test_what_is_printed_is_read_back(drawn):
    total, blocks = drawn
    plan = LayerPlan(total, tuple(sorted(blocks)))
    assert LayerPlan.parse(str(plan), total) == plan


@given(st.text(alphabet="01", min_size=2, max_size=40).filter(lambda text: "1" in text), st.integers(0, 40))
def test_segments_part_the_blocks_in_order_and_evenly(text, more):
    total = len(text) + more
    assigned = [LayerPlan.parse("0" * at + "1" + "0" * (len(text) - at - 1), total).blocks for at in range(len(text))]
    assert [block for blocks in assigned for block in blocks] == list(range(total))
    sizes = {len(blocks) for blocks in assigned}
    assert max(sizes) - min(sizes) <= 1
    chosen = tuple(block for mark, blocks in zip(text, assigned, strict=True) if mark == "1" for block in blocks)
    assert LayerPlan.parse(text, total).blocks == chosen
