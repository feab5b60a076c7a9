"""What a run says of the weights it holds on to."""

from dataclasses import replace

import torch

from midblock.tuning.anchor.factors import factorize
from midblock.tuning.loop.held_weights import HeldWeights
from midblock.tuning.settings import Anchoring

SETTINGS = Anchoring(anchor="rpsft", anchor_k="4")
EXACT = factorize(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), 4, seed=0)


def test_nothing_is_held_where_no_anchor_is_asked_for():
    nothing = HeldWeights(Anchoring())
    assert (nothing.bytes, nothing.notes, nothing.as_record()) == (0, [], None)


def test_the_size_of_the_factors():
    assert HeldWeights(SETTINGS, {"a": EXACT}).bytes == 4 * (8 * 4 + 4 * 4 + 6 * 4)


def test_weights_held_whole_and_directions_that_do_not_stand_are_named():
    assert HeldWeights(SETTINGS, {"a": EXACT}).notes == []
    loose = replace(EXACT, residual=0.25)
    whole, rough = HeldWeights(SETTINGS, {"a": EXACT, "b": loose}, full_rank=("a",)).notes
    assert "every direction of 1 weights (a)" in whole
    assert "directions of 1 weights (b) are approximate" in rough
    assert "up to 0.25" in rough
