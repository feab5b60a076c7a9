"""Multimodal checkpoints: midblock works on the text decoder inside, and leaves the towers alone, to the bit."""

from collections.abc import Callable, Mapping

import pytest
import torch

import midblock

from .cells import CELLS, SAMPLES, at, merge, near, open_pair, tensors, tune_full
from .outcome import check
from .pair import Pair, distance
from .wrappers import NEVER_ALONE, WRAPPERS, alone, in_decoder


def merge_beside_towers(pair: Pair) -> None:
    """As `merge`; and what is not the decoder's is the base's, bit for bit."""
    merge(pair)
    towers_are_the_bases(pair, pair.path("merged"))


def tune_beside_towers(pair: Pair) -> None:
    """As `tune_full`; and the saved model has the base's towers."""
    tune_full(pair)
    towers_are_the_bases(pair, pair.path("full/model"))


def towers_are_the_bases(pair: Pair, folder: str) -> None:
    base, now = tensors(pair.path("base")), tensors(folder)
    towers = {name for name in base if not in_decoder(name)}
    assert towers
    assert towers <= set(now)
    assert all(torch.equal(now[name], base[name]) for name in towers)


def analyze_alone(pair: Pair) -> None:
    """The wrapper against a tuned decoder saved alone: the same numbers as against a tuned wrapper."""
    write_alone(pair)
    found = midblock.analyze(open_pair(pair, "alone"), weights_only=True, metrics="delta_fro").frame
    base, tuned = pair.models.values()
    each = [at(found, "delta_fro", block, "alone", "block") for block in range(pair.depth)]
    assert each == [near(distance(base, tuned, block), rel=1e-5) for block in range(pair.depth)]
    names = {"metrics": "change_intensity", "weights": False, "num_samples": SAMPLES, "precision_floor": False}
    one, two = (midblock.analyze(open_pair(pair, name), pair.data, **names).frame for name in ("alone", "tuned"))
    values = [frame[frame.metric == "change_intensity"].value.tolist() for frame in (one, two)]
    assert values[0] == [near(value) for value in values[1]]


def merge_alone(pair: Pair) -> None:
    """The wrapper mixed with a decoder saved alone: the decoder is the mean, the towers are the base's."""
    write_alone(pair)
    merged = midblock.merge(pair.path("base"), pair.path("alone"), "0.5", output_dir=pair.path("mixed"))
    towers_are_the_bases(pair, str(merged))
    base, tuned, mixed = (pair.load(path).state_dict() for path in (pair.path("base"), pair.path("tuned"), str(merged)))
    for name in filter(in_decoder, base):
        torch.testing.assert_close(mixed[name], (base[name] + tuned[name]) / 2, rtol=1e-6, atol=1e-7)


def write_alone(pair: Pair) -> None:
    alone(pair.models["tuned"]).save_pretrained(pair.path("alone"))


MULTIMODAL: Mapping[str, Callable[[Pair], None]] = {
    **CELLS,
    "merge": merge_beside_towers,
    "tune full": tune_beside_towers,
    "analyze, decoder alone": analyze_alone,
    "merge, decoder alone": merge_alone,
}


@pytest.mark.parametrize("cell", MULTIMODAL)
@pytest.mark.parametrize("wrapper_pair", WRAPPERS, indirect=True, scope="module")
def test_cell(wrapper_pair, cell):
    if "alone" in cell and wrapper_pair.family in NEVER_ALONE:
        return
    check(wrapper_pair, cell, MULTIMODAL[cell])
