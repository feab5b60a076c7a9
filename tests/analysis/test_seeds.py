"""`analyze --seeds K`: disjoint samples of prompts, the first of them as ever, and the spread over them."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import yaml

from midblock.analysis import analyze, summarize
from midblock.analysis.measure import Measurement
from midblock.analysis.prompts import prepare_prompts
from midblock.analysis.samples import draw_samples, sample_rows, spread_rows
from midblock.analysis.settings import AnalysisSettings
from midblock.base import LayerRow, LayerTable, MidblockError
from midblock.checkpoints import Anatomy, Pair, load_pair
from midblock.data import Example, ExampleSet, load_dataset
from midblock.data.examples import hash_examples
from midblock.metrics import METRICS
from midblock.metrics.uncertainty import permutations
from midblock.report import write_report
from midblock.runs.record import read_record

SMALL = {"num_samples": 8, "num_token_samples": 4}
BUILTIN = "builtin:chain_sum"
# One of each kind: of one prompt's tokens, of the pooled states, paired, of the logit lens, of views, of weights.
EACH_KIND = "curvature,effective_rank,cka_debiased,change_increment,logit_kl,lidar,infonce,delta_rel"
TRIED = 1  # pass over a few tokens by which a model's states are checked before they are measured


def settings(**options):
    return AnalysisSettings(**{"num_samples": 8, "seeds": 3} | options)


def in_memory(texts):
    examples = tuple(Example(text) for text in texts)
    return ExampleSet("some:data", "test", "text", examples, hash_examples(examples))


def write_texts(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def texts_of(samples):
    return [[example.text for example in sample] for sample in samples]


def assert_disjoint(texts):
    assert len({text for each in texts for text in each}) == sum(map(len, texts))


def main_rows(table):
    frame = table.frame
    return frame[~frame.metric.str.contains(r"\.seed")].reset_index(drop=True)


def renamed(table, suffix):
    frame = table.frame[table.frame.metric.str.endswith(suffix)]
    return frame.assign(metric=frame.metric.str.removesuffix(suffix)).reset_index(drop=True)


def estimates(table):
    frame = table.frame
    frame = frame[(frame.module == "residual") & ~frame.metric.str.contains(".", regex=False)]
    return frame.reset_index(drop=True)


@pytest.fixture
def saved(tmp_path, tokenizer):
    def save(model, name):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.fixture(scope="module")
def pair(pico, tuned_from, tokenizer):
    base = pico("llama")
    return Pair.of_models(base, {"sft": tuned_from(base), "dpo": tuned_from(base, seed=2)}, tokenizer)


# Samples


@pytest.mark.parametrize("source", ["builtin", "file"])
def test_samples_share_no_text_and_the_first_is_as_ever(source, tmp_path):
    data = BUILTIN if source == "builtin" else write_texts(tmp_path / "a.jsonl", [f"line {i}" for i in range(24)])
    samples = draw_samples(data, settings())
    assert [len(sample) for sample in samples] == [8, 8, 8]
    assert_disjoint(texts_of(samples))
    alone = load_dataset(data, num_samples=8)
    assert samples[0] == alone
    assert draw_samples(data, settings(seeds=1)) == (alone,)
    assert draw_samples(data, settings(seeds=2)) == samples[:2]
    for sample in samples:
        assert sample.content_hash == hash_examples(sample.examples)
    assert draw_samples(data, settings(seed=1)) != samples


def test_a_text_that_comes_twice_in_a_file_is_in_one_sample_only(tmp_path):
    lines = [f"line {i}" for i in range(24)]
    data = write_texts(tmp_path / "twice.jsonl", [text for text in lines for _ in range(2)])
    samples = texts_of(draw_samples(data, settings(seeds=2)))
    assert [len(texts) for texts in samples] == [8, 8]
    assert not set(samples[0]) & set(samples[1])
    assert len(set(samples[1])) == 8
    # Plain skipping would have repeated some, so the test can fail.
    assert set(samples[0]) & {example.text for example in load_dataset(data, num_samples=8, skip=8)}


def test_examples_in_memory_are_parted():
    texts = [f"line {i}" for i in range(20)] + ["line 3", "line 4"]
    parts = texts_of(draw_samples(in_memory(texts), settings()))
    assert [len(part) for part in parts] == [6, 6, 6]
    assert_disjoint(parts)
    # At random, or a sorted set would be parted by what it is sorted by; each part stays in order.
    places = [[texts.index(text) for text in part] for part in parts]
    assert places == [sorted(each) for each in places]
    assert max(places[0]) > 10 > min(places[1])
    data = in_memory(texts)
    assert draw_samples(data, settings(seeds=1)) == (data,)


def test_too_few_prompts_are_counted(tmp_path):
    data = write_texts(tmp_path / "few.jsonl", [f"line {i}" for i in range(20)])
    message = r"cannot draw 3 disjoint samples of 8 prompts: .* holds 20 samples; .*\(lower --seeds or --num-samples\)$"
    with pytest.raises(MidblockError, match=message):
        draw_samples(data, settings())
    data = write_texts(tmp_path / "same.jsonl", [f"line {i % 12}" for i in range(30)])
    with pytest.raises(MidblockError, match=r"holds 30 samples; .* repeated an earlier one"):
        draw_samples(data, settings())
    with pytest.raises(
        MidblockError, match="some:data holds 11 different prompts, too few for 3 disjoint samples of 4"
    ):
        draw_samples(in_memory([f"line {i % 11}" for i in range(15)]), settings())
    with pytest.raises(MidblockError, match="seeds is 0; it must be 1 or more"):
        settings(seeds=0)


# Rows


def test_the_spread_is_mean_smallest_and_largest():
    def rows(*values):
        return [LayerRow("sft", i, 3, "cka", value, 8, 0, 1, "data") for i, value in enumerate(values)]

    null = LayerRow("sft", 0, 3, "cka.null", 0.5, 8)
    samples = [[*rows(1.0, 4.0), null], [*rows(2.0, 2.0), null], [*rows(6.0, 3.0), null]]
    assert [(row.metric, row.value, row.low, row.high, row.n, row.layer) for row in spread_rows(samples)] == [
        ("cka.seeds", 3.0, 1.0, 6.0, 3, 0),
        ("cka.seeds", 3.0, 2.0, 4.0, 3, 1),
    ]
    assert [(row.metric, row.value, row.low) for row in sample_rows(samples[1], 2)] == [
        ("cka.seed2", 2.0, 0),
        ("cka.seed2", 2.0, 0),
    ]


def test_sample_0_is_a_single_sample_and_the_others_are_what_they_would_be_alone(pair):
    options = {**SMALL, "metrics": EACH_KIND}
    several, one = (analyze(pair, BUILTIN, seeds=seeds, **options) for seeds in (3, 1))
    pd.testing.assert_frame_equal(main_rows(several), one.frame, check_exact=True)
    residual = {name for name in EACH_KIND.split(",") if not METRICS[name].of_weights}
    expected = {f"{name}{suffix}" for name in residual for suffix in (".seed1", ".seed2", ".seeds")}
    assert set(several.metrics) - set(one.metrics) == expected
    samples = draw_samples(BUILTIN, settings())
    alone = [estimates(analyze(pair, sample, weights=False, **options)) for sample in samples]
    for number in (1, 2):
        pd.testing.assert_frame_equal(renamed(several, f".seed{number}"), alone[number], check_exact=True)
    spread, values = renamed(several, ".seeds"), np.stack([each.value for each in alone])
    np.testing.assert_allclose(spread.value, values.mean(0), rtol=1e-12)
    assert (spread.low == values.min(0)).all()
    assert (spread.high == values.max(0)).all()
    assert (spread.low < spread.high).mean() > 0.8
    assert (spread.n == 3).all()
    where = ["model", "dataset", "layer", "depth", "module", "metric"]
    pd.testing.assert_frame_equal(spread[where], alone[0][where])


def test_every_model_reads_each_sample_once_and_references_are_made_once(pico, tuned_from, tokenizer, monkeypatch):
    base = pico("llama")
    tuned = tuned_from(base)
    seen, drawn = [], []
    for model in (base, tuned):
        Anatomy.of(model).blocks[0].register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    asked = "midblock.analysis.estimates.permutations"
    monkeypatch.setattr(asked, lambda *of, **named: drawn.append(of) or permutations(*of, **named))
    options = {**SMALL, "weights": False, "metrics": "cka,curvature"}
    analyze(Pair.of_models(base, {"sft": tuned}, tokenizer), BUILTIN, seeds=3, **options)
    # the base, rounded, reads the token-level prompts of sample 0; each model is tried twice on a few tokens
    assert sum(seen) == 2 * 3 * 8 + 4 + 2 * TRIED
    assert len(drawn) == 5  # layers


def test_examples_in_memory_are_measured_part_by_part(pair):
    data = load_dataset(BUILTIN, num_samples=18)
    options = {"num_token_samples": 4, "metrics": "cka,curvature", "precision_floor": False}
    table = analyze(pair, data, seeds=2, **options)
    parts = draw_samples(data, settings(seeds=2))
    assert [len(part) for part in parts] == [9, 9]
    pd.testing.assert_frame_equal(main_rows(table), analyze(pair, parts[0], **options).frame, check_exact=True)
    assert set(table.select(metric="cka.seed1").frame.n) == {9}


# The run


class Watch:
    """Progress that remembers its phases, and gives up after some batches as a person pressing Ctrl-C does."""

    def __init__(self, stop_after=0):
        self.left, self.totals, self.done = stop_after, {}, {}

    def phase(self, title, total):
        assert title not in self.totals
        self.totals[title], self.done[title] = total, 0

        def advance(amount):
            self.done[title] += amount
            if title == "measuring":
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt

        return advance


def test_a_run_stopped_in_any_sample_goes_on(pico, tuned_from, saved, tmp_path, monkeypatch):
    monkeypatch.setattr("midblock.analysis.work.Measurement", partial(Measurement, save_seconds=0.0))
    base = pico("llama")
    pair = load_pair(saved(base, "start"), saved(tuned_from(base), "sft"), device="cpu")
    options = {**SMALL, "batch_tokens": 200, "metrics": "cka,curvature", "seeds": 3}
    whole = analyze(pair, BUILTIN, output_dir=tmp_path / "whole", **options)
    samples = [
        prepare_prompts(pair, sample, settings(num_token_samples=4, batch_tokens=200), views=False)
        for sample in draw_samples(BUILTIN, settings())
    ]
    batches = [len(prompts.deep) + len(prompts.pooled) for prompts in samples]
    for place, folders in enumerate(
        (
            ["partial"],
            ["partial", "evaluated", "seed1"],
            ["partial", "evaluated", "seed1", "evaluated1", "seed2"],
        )
    ):
        run, stop = tmp_path / f"run{place}", sum(batches[:place]) + 2
        with pytest.raises(KeyboardInterrupt):
            analyze(pair, BUILTIN, output_dir=run, progress=Watch(stop), **options)
        assert {path.parent.name for path in (run / "partial").rglob("*.safetensors")} == set(folders)
        with pytest.raises(MidblockError, match="seeds: 3 then, 2 now"):
            analyze(pair, BUILTIN, output_dir=run, resume=True, **options | {"seeds": 2})
        passes = count_passes(pair)
        table = analyze(pair, BUILTIN, output_dir=run, resume=True, **options)
        pd.testing.assert_frame_equal(table.frame, whole.frame, check_exact=True)
        # What was measured before is not measured again: the last batch was saved before anyone heard of it.
        assert passes() == sum(batches) - stop + TRIED
        assert not (run / "partial").exists()


def count_passes(pair):
    """Batches that the tuned model sees from here on, until asked."""
    seen = []
    handle = Anatomy.of(pair.tuned[0].model).blocks[0].register_forward_pre_hook(lambda *_: seen.append(1))

    def stop():
        handle.remove()
        return len(seen)

    return stop


def test_progress_covers_all_samples(pair):
    watch = Watch()
    analyze(pair, BUILTIN, progress=watch, seeds=2, precision_floor=False, metrics="cka,curvature", **SMALL)
    assert watch.done == watch.totals
    assert watch.totals["intervals and nulls"] == 2 * 2 * 5


def test_what_is_recorded_and_drawn(pico, tuned_from, saved, tmp_path):
    base = pico("llama")
    pair = load_pair(saved(base, "start"), saved(tuned_from(base), "sft"), device="cpu")
    options = {**SMALL, "metrics": "change_increment,change_intensity_relative,cka_debiased,delta_rel"}
    table = analyze(pair, BUILTIN, output_dir=tmp_path / "run", seeds=3, **options)
    hashes = [sample.content_hash for sample in draw_samples(BUILTIN, settings())]
    record = read_record(tmp_path / "run")
    assert record["data"]["content_hash"] == hashes[0]
    assert record["data"]["content_hashes"] == record["inputs"]["the data"] == hashes
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["seeds"] == 3
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    single = analyze(pair, BUILTIN, output_dir=tmp_path / "single", **options)
    assert "content_hashes" not in read_record(tmp_path / "single")["data"]
    # Nothing but the spread is new.
    spread = summary["models"][0].pop("spread")
    assert summary == json.loads((tmp_path / "single" / "summary.json").read_text())
    assert spread[0] == {
        "center": summary["models"][0]["representation_depth"]["center"],
        "half_depth": summary["models"][0]["half_depth"],
    }
    third = estimates(LayerTable(renamed(table, ".seed2")))
    read = summarize(LayerTable(pd.concat([third, single.select(metric="delta_rel").frame])))["models"][0]
    assert spread[2] == {"center": read["representation_depth"]["center"], "half_depth": read["half_depth"]}
    assert len(spread) == 3
    page = write_report(tmp_path / "run").read_text()
    assert "cka_debiased.seeds" in page


def test_samples_that_changed_are_not_resumed(pico, tuned_from, saved, tmp_path):
    base, run = pico("llama"), tmp_path / "run"
    lines = [f"How many apples are {n} and {n * n}?" for n in range(16)]
    data = write_texts(tmp_path / "prompts.jsonl", lines)
    pair = load_pair(saved(base, "start"), saved(tuned_from(base), "sft"), device="cpu")
    options = {**SMALL, "seeds": 2, "metrics": "cka"}
    with pytest.raises(KeyboardInterrupt):
        analyze(pair, data, output_dir=run, progress=Watch(1), **options)
    second = load_dataset(data, num_samples=8, skip=8).examples[0].text
    write_texts(tmp_path / "prompts.jsonl", [line.replace(second, "What else?") for line in lines])
    with pytest.raises(MidblockError, match="the data changed since"):
        analyze(pair, data, output_dir=run, resume=True, **options)


def test_prompts_left_out_of_a_sample_are_noted(pair, tmp_path):
    data = in_memory([f"How many apples are {n} and {n * n}?" for n in range(12)] + list("abcde"))
    options = {"seeds": 2, "metrics": "cka", "precision_floor": False, "weights": False}
    analyze(pair, data, output_dir=tmp_path / "run", **options)
    short = [sum(len(text) == 1 for text in texts) for texts in texts_of(draw_samples(data, settings(seeds=2)))]
    assert min(short) > 0
    notes = read_record(tmp_path / "run")["notes"]
    assert [note for note in notes if "are few" not in note][-3:] == [
        f"{short[0]} prompt(s) too short to be measured: left out.",
        f"Sample 1: {short[1]} prompt(s) too short to be measured: left out.",
        "The 17 prompts in memory were parted into 2 samples of 8.",
    ]


def test_weights_are_compared_once(pair):
    table = analyze(pair, BUILTIN, seeds=2, metrics="cka,delta_rel", precision_floor=False, **SMALL)
    assert not any(metric.startswith("delta_rel.") for metric in table.metrics)
    assert len(table.select(metric="delta_rel", module="block", model="sft")) == 3
