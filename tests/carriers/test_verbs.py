"""A model with a carrier in every verb: as its applied checkpoint to the digit, or one line that says why not."""

import pandas as pd
import pytest
import torch

from midblock import MidblockError, analyze, load_pair
from midblock.checkpoints import LoadSettings, TensorReader, load_model, open_checkpoint
from midblock.evaluation import evaluate
from midblock.interventions import merge, swap
from midblock.tuning import export, tune

SUMS = "builtin:chain_sum"


def numbers(table):
    return table.frame.drop(columns="model")


def alike(first, second):
    pd.testing.assert_frame_equal(numbers(first), numbers(second), check_exact=True)


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "mixtral"])
def test_merging_writes_it_applied(family, carved):
    found = carved(family, max_shard_size="60KB")
    expected = dict(load_model(open_checkpoint(found.carried), LoadSettings()).named_parameters())
    written = dict(load_model(open_checkpoint(found.applied), LoadSettings()).named_parameters())
    before = dict(load_model(open_checkpoint(found.base), LoadSettings()).named_parameters())
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], value) for name, value in expected.items())
    assert any(not torch.equal(before[name], value) for name, value in expected.items())
    with TensorReader.open(found.base) as ours, TensorReader.open(found.applied) as theirs:
        assert set(ours.names) == set(theirs.names)


def test_half_of_it_is_a_blend(carved, tmp_path):
    found = carved("llama")
    one, other = (
        merge(found.base, tuned, 0.5, output_dir=tmp_path / name)
        for name, tuned in (("one", found.carried), ("other", found.applied))
    )
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert not (one / "mergekit.yaml").exists()
    assert (other / "mergekit.yaml").exists()


@pytest.mark.parametrize("family", ["mixtral"])
def test_weights_are_compared_as_the_applied_checkpoints(family, carved):
    found = carved(family)
    tables = [analyze(load_pair(found.base, tuned), weights_only=True) for tuned in (found.carried, found.applied)]
    assert len(tables[0].frame) > 100
    alike(*tables)


def test_it_is_analysed_swapped_and_evaluated_as_the_applied_checkpoint(carved):
    found = carved("llama")
    pairs = [load_pair(found.base, tuned) for tuned in (found.carried, found.applied)]
    alike(*(analyze(pair, SUMS, num_samples=8, metrics="cka,delta_rel,kl_answers") for pair in pairs))
    alike(*(swap(pair, SUMS, num_samples=4, segments="3", direction="into_base") for pair in pairs))
    scored = [evaluate(pair, f"perplexity:{SUMS}", num_samples=4) for pair in pairs]
    assert scored[0].scores.value.tolist() == scored[1].scores.value.tolist()


def test_what_is_not_supported_says_so_in_a_line(carved, tmp_path):
    found = carved("llama")
    carrier = found.carried.partition("+")[2]
    for refused in (
        lambda: tune(found.carried, SUMS, "all", max_steps=1, output_dir=tmp_path / "tuned"),
        lambda: export(carrier, "merged"),
        lambda: export(found.carried, "merged"),
    ):
        with pytest.raises(MidblockError, match="midblock merge BASE BASE\\+CARRIER --alphas 1") as caught:
            refused()
        assert "\n" not in str(caught.value)
