from midblock.base.plural import blocks_named, counted


def test_one_is_no_plural():
    assert [counted(n, "block") for n in (0, 1, 2, 1000)] == ["0 blocks", "1 block", "2 blocks", "1,000 blocks"]


def test_a_plan_of_one_block():
    assert [blocks_named(plan) for plan in ("3", "3-5", "0,2")] == ["block 3", "blocks 3-5", "blocks 0,2"]
