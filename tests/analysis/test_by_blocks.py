"""Block by block: the numbers of whole models to the bit, whatever the batches, also where a walk was stopped."""

import contextlib
import json
import random

import pytest
import torch

import midblock
from midblock.analysis.measure import Measurement
from midblock.analysis.prompts import Prompts
from midblock.analysis.settings import AnalysisSettings
from midblock.base import MidblockError
from midblock.checkpoints import load_pair
from midblock.data import TokenizedPrompt, load_dataset, make_batches
from midblock.trace.tensor_store import TensorStore

LAYERS = (-1, 0, 1, 2, 3)
ALL = frozenset({"pooled", "tokens", "lens", "heads", "own", "reverse", "views", "floor"})
LENGTHS = (3, 17, 5, 11, 4, 23, 8, 9)


@pytest.fixture(scope="module")
def data():
    return load_dataset("builtin:chain_sum", num_samples=8)


def prompts(batch_tokens=64):
    stream = random.Random(0)
    made = [
        TokenizedPrompt(i, tuple(stream.randrange(3, 300) for _ in range(length)), length // 2)
        for i, length in enumerate(LENGTHS)
    ]
    deep, pooled, view, general = (
        make_batches(part, batch_tokens=batch_tokens, pad_id=0) for part in (made[:5], made[5:], made, made[2:6])
    )
    return Prompts("some:data", deep, pooled, (view,), {}, [], general=general)


@pytest.fixture(scope="module")
def folders(pico, tuned_from, tokenizer, tmp_path_factory):
    """A base in two files and two tuned models on disk."""
    folder, base = tmp_path_factory.mktemp("by_blocks"), pico("llama")
    for name, model in {"base": base, "sft": tuned_from(base), "dpo": tuned_from(base, seed=2)}.items():
        model.save_pretrained(folder / name, max_shard_size="60KB" if name == "base" else "1GB")
        tokenizer.save_pretrained(folder / name)
    assert len(list((folder / "base").glob("*.safetensors"))) > 1
    return [str(folder / name) for name in ("base", "sft", "dpo")]


def measure(folders, made, partial=None, advance=lambda tokens: None, parts=True, limit=2**30, **options):
    pair = load_pair(*folders, device="cpu")
    if parts:
        pair.open_parts()
    try:
        settings = AnalysisSettings(metrics="all")
        measurement = Measurement(pair, made, settings, ALL, LAYERS, partial, limit=limit, **options)
        return measurement.run(advance).rows, measurement
    finally:
        pair.close_parts()


@pytest.fixture(scope="module")
def whole(folders):
    return measure(folders, prompts(), parts=False)[0]


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, rows in expected.items():
        assert torch.equal(found[key].index, rows.index), key
        assert torch.equal(found[key].values, rows.values), key


def test_every_row_is_that_of_whole_models_to_the_bit(folders, whole):
    heard = []
    found, _ = measure(folders, prompts(), advance=heard.append)
    assert {key.split("|")[0].partition(".")[0] for key in found} >= {"own", "reverse", "lens", "heads", "general"}
    check_equal(found, whole)
    made = prompts()
    batches = [*made.deep, *made.pooled, *made.views[0], *made.general]
    assert sum(heard) == pytest.approx(sum(batch.input_ids.numel() for batch in batches))


@pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
def test_batches_of_any_size_give_what_whole_models_give(folders, batch_tokens):
    made = prompts(batch_tokens)
    check_equal(measure(folders, made)[0], measure(folders, made, parts=False)[0])


def test_states_that_memory_does_not_hold_wait_on_disk(folders, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    written = []

    def advance(tokens):
        written.append(len(list(tmp_path.glob("midblock-*/*.safetensors"))))

    check_equal(measure(folders, prompts(), advance=advance, limit=1)[0], whole)
    assert max(written) > 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", range(4))
def test_any_batches_any_memory_stopped_anywhere(folders, tmp_path, seed):
    drawn = random.Random(seed)
    made = prompts(drawn.randrange(1, 120))
    expected = measure(folders, made, parts=False)[0]
    options = {"limit": int(10 ** drawn.uniform(0, 6)), "owner": "a"}
    total = 4 * 3 * (len(made.deep) + len(made.pooled))  # of blocks, models and batches: somewhat fewer than there are
    for _ in range(2):
        left = drawn.randrange(1, total)

        def advance(tokens):
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            measure(folders, made, tmp_path, advance, save_seconds=drawn.choice((0.0, 60.0)), **options)
    check_equal(measure(folders, made, tmp_path, **options)[0], expected)


@pytest.mark.parametrize("after", [0, 5, 22, 50])
def test_a_walk_that_was_stopped_goes_on_at_the_block_it_had_reached(folders, whole, tmp_path, after):
    def stopped(tokens):
        if len(heard) == after:
            raise KeyboardInterrupt
        heard.append(tokens)

    heard = []
    with pytest.raises(KeyboardInterrupt):
        measure(folders, prompts(), tmp_path, stopped, save_seconds=0.0, owner="a")
    read = []
    found, again = measure(folders, prompts(), tmp_path, lambda tokens: read.append(tokens), owner="a")
    check_equal(found, whole)
    assert not again.dropped
    kept = [int(file.stem) for file in (tmp_path / "blocks").glob("*.safetensors")]
    assert sorted(kept)[:after] == list(range(1, after + 1))


def test_what_was_kept_is_another_runs_or_damaged(folders, whole, tmp_path):
    measure(folders, prompts(), tmp_path, save_seconds=0.0, owner="a")
    with pytest.raises(MidblockError, match="another"):
        measure(folders, prompts(), tmp_path, owner="b")
    file = sorted((tmp_path / "blocks").glob("*.safetensors"))[7]
    file.write_bytes(file.read_bytes()[:-3])
    found, again = measure(folders, prompts(), tmp_path, owner="a")
    check_equal(found, whole)
    assert "damaged" in again.dropped[0]


def test_each_weight_is_read_once_but_where_both_ways_are_asked_for(folders, monkeypatch):
    from midblock.checkpoints.blockwise import BlockwiseModel

    read, own = [], BlockwiseModel._value

    def value(self, name, kind):
        read.append((self.name, name))
        return own(self, name, kind)

    monkeypatch.setattr(BlockwiseModel, "_value", value)
    pair = load_pair(*folders, device="cpu")
    pair.open_parts()
    Measurement(pair, prompts(), AnalysisSettings(), ALL - {"reverse"}, LAYERS, limit=2**30).run()
    pair.close_parts()
    large = [each for each in read if each[1] not in ("model.norm.weight",)]
    assert len(large) == len(set(large))
    assert len(set(read)) == sum(len(list(model.named_parameters())) for model in _models(folders))


def _models(folders):
    return [variant.model for variant in load_pair(*folders, device="cpu")]


def test_the_verb_says_which_engine_it_took_and_why(folders, data, tmp_path):
    options = {"num_samples": 6, "num_token_samples": 4, "metrics": "cka,delta_rel,logit_kl"}
    whole = midblock.analyze(load_pair(*folders, device="cpu"), data, **options)
    capped = load_pair(*folders, device="cpu", max_memory="8GB")
    found = midblock.analyze(capped, data, output_dir=tmp_path / "run", **options)
    assert found.frame.equals(whole.frame)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["engine"]["kind"] == "block by block"
    assert record["engine"]["max_memory"] == 8 * 10**9
    assert any("block by block: --max-memory 8GB" in note for note in record["notes"])
    assert not capped.in_parts


@pytest.mark.parametrize(
    ("options", "settings", "words"),
    [
        ({"max_memory": "10MB"}, {}, r"block by block these models need .*\(--max-memory \d+MB"),
        ({"max_memory": "8GB"}, {"controls": "random"}, "controls change whole models"),
        ({"max_memory": "much"}, {}, "size"),
        ({"max_memory": "8GB", "device_map": "auto"}, {}, "exclude each other"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_line(folders, data, options, settings, words):
    with pytest.raises(MidblockError, match=words):
        midblock.analyze(load_pair(*folders, **options), data, num_samples=6, **settings)


def test_what_loads_whole_models_does_not_ignore_the_cap(folders):
    pair = load_pair(*folders[:2], device="cpu", max_memory="8GB")
    with pytest.raises(MidblockError, match="max_memory cannot be kept"):
        pair.tuned[0].model  # noqa: B018


def test_kept_holds_no_more_than_its_limit(tmp_path):
    with TensorStore(tmp_path, 1000, "me") as kept:
        kept.resume()
        for step in range(1, 9):
            kept.put(f"{step}", torch.full((100,), float(step)))
            kept.step(step)
            assert kept._bytes <= 1000
        assert [float(kept.get(f"{step}")[0]) for step in range(1, 9)] == list(range(1, 9))
    with TensorStore(tmp_path, 1000, "me") as again:
        done, notes = again.resume()
        assert (done, notes) == (8, []) or done < 8
        assert float(again.get("1")[5]) == 1
