"""Intervals and nulls go on at the layer they had reached, and come out the same to the bit."""

import math
from concurrent.futures import wait
from functools import partial
from threading import Event

import pytest
import torch

from midblock.analysis import analyze
from midblock.analysis.estimates import Estimates
from midblock.analysis.evaluated import Evaluated, Key, SideBySide
from midblock.analysis.measure import Measured
from midblock.base import Estimate, MidblockError
from midblock.checkpoints import load_pair
from midblock.data import load_dataset
from midblock.runs.record import read_record
from midblock.trace import RowStatistic, RowStore

LAYERS = (-1, 0, 1, 2)
WANTED = frozenset({"cka_debiased", "intrinsic_dimension", "cosine_similarity", "effective_rank", "l2_norm"})


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def measured():
    """At the embedding, pairs of prompts have the same state."""
    rows = {}
    for layer in LAYERS:
        base = gaussian(24, 6, seed=layer + 1)
        if layer == -1:
            base[12:] = base[:12]
        for model, amount in ((0, 0.0), (-1, 0.01), (1, 0.3)):  # the base, the base rounded, the tuned one
            rows[f"pooled|{layer}|{model}"] = RowStatistic(torch.arange(24), base + amount * gaussian(24, 6, seed=9))
    return Measured(rows, ["s|t"])


class StoppedError(Exception):
    pass


def stop_after(layers):
    heard = []

    def advance(amount):
        heard.append(amount)
        if len(heard) == layers:
            raise StoppedError

    return advance


def estimates(**options):
    return Estimates(measured(), ("s|t",), WANTED, LAYERS, 2, "some:data", 0, save_seconds=0.0, **options)


@pytest.mark.parametrize("stopped", [1, 3, 4])
def test_stopped_anywhere_it_goes_on_at_that_layer(tmp_path, monkeypatch, stopped):
    whole = estimates()
    expected = list(map(repr, whole.rows()))
    with pytest.raises(StoppedError):
        list(estimates(partial=tmp_path, owner="run").rows(stop_after(stopped)))
    assert len(list(tmp_path.iterdir())) == stopped
    seen, layer_of = [], Estimates._layer
    monkeypatch.setattr(Estimates, "_layer", lambda self, layer: (seen.append(layer), layer_of(self, layer))[1])
    again = estimates(partial=tmp_path, owner="run")
    assert list(map(repr, again.rows())) == expected
    assert sorted(seen) == list(LAYERS[stopped:])
    assert again.notes() == whole.notes() != []


def test_layers_of_another_run_are_refused_and_damaged_ones_evaluated_again(tmp_path):
    expected = list(map(repr, estimates(partial=tmp_path, owner="run").rows()))
    with pytest.raises(MidblockError, match=r"000001\.safetensors was kept by another run"):
        list(estimates(partial=tmp_path, owner="other").rows())
    damaged = tmp_path / "000003.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"\x01\x02\x03\x04")
    again = estimates(partial=tmp_path, owner="run")
    assert list(map(repr, again.rows())) == expected
    assert any("000003.safetensors was damaged: from step 3 on" in note for note in again.notes())


def test_a_layer_comes_back_from_its_rows_in_order():
    made = Evaluated(3)
    for metric, value in (("z", 0.1), ("a", math.nan), ("m", -0.0)):
        made.found.append((Key(3, "s|t", metric), Estimate(value, math.nan, 1 / 3, 7)))
    made.found.append((Key(3, "s|t", "a", "expert:7"), Estimate(0.5, 0.25, 0.75, 7)))
    made.columns.append((Key(3, "s|t", "c"), gaussian(5)))
    made.alike["base"] = 7, 4
    store, again = RowStore(), RowStore()
    made.put(store)
    piece = store.take_unsaved()
    again.restore({name: piece[name] for name in sorted(piece)})
    (back,) = Evaluated.all_of(again, [3])
    assert repr(back.found) == repr(made.found)
    assert (back.columns[0][0], back.alike) == (made.columns[0][0], made.alike)
    assert torch.equal(back.columns[0][1], made.columns[0][1])


def test_layers_that_nobody_waits_for_are_not_begun():
    begun, closed = [], Event()

    def evaluate(layer):
        begun.append(layer)
        if layer:  # until nobody waits any more
            closed.wait(60)
        return Evaluated(layer)

    side = SideBySide(evaluate, range(10_000), 1)
    assert side.take(0).layer == 0
    side.close()
    closed.set()
    wait(side.running.values())
    assert begun in ([0], [0, 1])


def test_matrices_of_many_prompts_are_not_made_side_by_side(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    wide = Measured({"pooled|0|0": RowStatistic(torch.arange(9000), torch.empty(9000, 8192, device="meta"))}, [])
    assert Estimates(wide, (), WANTED, (0,), 1, "", 0)._threads() == 1
    assert estimates()._threads() == 64


class StopIn:
    """Progress that gives up behind a step of a phase, as a person pressing Ctrl-C does."""

    def __init__(self, title, after):
        self.title, self.left = title, after

    def phase(self, title, total):
        return self.advance if title == self.title else lambda amount: None

    def advance(self, amount):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_analysis_stopped_among_intervals_ends_with_the_same_table(
    pico, tuned_from, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr("midblock.analysis.work.Estimates", partial(Estimates, save_seconds=0.0))
    for model, name in ((base := pico("llama"), "start"), (tuned_from(base), "sft")):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    pair = load_pair(str(tmp_path / "start"), str(tmp_path / "sft"), device="cpu")
    data = load_dataset("builtin:chain_sum", num_samples=8)
    again = partial(analyze, pair, data, num_samples=8, num_token_samples=4, weights=False)
    whole, run = again(output_dir=tmp_path / "whole"), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        again(output_dir=run, progress=StopIn("intervals and nulls", 2))
    assert len(list((run / "partial" / "evaluated").iterdir())) == 2
    assert again(output_dir=run, resume=True).frame.equals(whole.frame)
    assert (run / "layers.parquet").read_bytes() == (tmp_path / "whole" / "layers.parquet").read_bytes()
    assert read_record(run)["notes"] == read_record(tmp_path / "whole")["notes"]
