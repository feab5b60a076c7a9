"""`analyze` end to end, on real models of every family, small."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pandas as pd
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from midblock.analysis import analyze
from midblock.analysis.measure import Measurement
from midblock.base import LayerTable, MidblockError
from midblock.checkpoints import Anatomy, Pair, load_pair
from midblock.data import load_dataset
from midblock.metrics import METRICS
from midblock.runs.record import read_record

SMALL = {"num_samples": 8, "num_token_samples": 4}
LAYERS = [-1, 0, 1, 2, 3]
GENERAL = {"kl_general", "kl_general_reverse"}  # of texts that only --general names
MIXED = {name for name, metric in METRICS.items() if metric.by_expert or metric.source in ("routers", "loads")}
MIXTURES = ("mixtral", "olmoe", "qwen3_moe")
RESIDUAL = {name for name, metric in METRICS.items() if not metric.of_weights} - GENERAL - MIXED
WEIGHTS = set(METRICS) - RESIDUAL - GENERAL - MIXED
RELATIVE = {name for name, metric in METRICS.items() if metric.paired}


@pytest.fixture(scope="module")
def data():
    return load_dataset("builtin:chain_sum", num_samples=8)


@pytest.fixture
def saved(tmp_path, tokenizer):
    def save(model, name, **options):
        model.save_pretrained(tmp_path / name, **options)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


def assert_same(ours, theirs, **tolerance):
    pd.testing.assert_frame_equal(ours.frame, theirs.frame, **(tolerance or {"check_exact": True}))


def without(table, *metrics):
    frame = table.frame
    return LayerTable(frame[~frame.metric.str.split(".").str[0].isin(metrics)].reset_index(drop=True))


def test_every_metric_at_every_layer(family, pico, tuned_from, tokenizer, data):
    base = pico(family)
    table = analyze(Pair.of_models(base, {"sft": tuned_from(base)}, tokenizer), data, metrics="all", **SMALL)
    for name in RESIDUAL:
        models = ["sft"] if METRICS[name].paired else ["base", "sft"]
        # The final norm changes the space, so no block's own addition is defined there.
        layers = {"own": LAYERS[1:-1], "heads": LAYERS[-1:]}.get(METRICS[name].source, LAYERS)
        layers = LAYERS[:-1] if name == "change_increment" else layers
        for model in models:
            curve = table.curve(name, model)
            assert curve.layer.tolist() == layers, (name, model)
            assert curve.value.notna().all(), (name, model)
    mixed = table.select(metric=sorted(MIXED)).frame
    assert set(mixed.metric) == (MIXED if family in MIXTURES else set())
    assert mixed.value.notna().all()
    assert all(sorted(set(rows.layer)) == [0, 1, 2] for _, rows in mixed.groupby(["metric", "model", "module"]))
    blocks = table.select(module="block", metric="delta_rel")
    assert sorted(row.layer for row in blocks) == [0, 1, 2]
    assert all(0.01 < row.value < 0.2 for row in blocks)
    assert set(table.select(metric=sorted(WEIGHTS)).metrics) == WEIGHTS
    assert set(table.select(module=["attention", "mlp"]).frame.module) == {"attention", "mlp"}


def test_intervals_nulls_and_floors_stand_beside_the_values(pico, tuned_from, tokenizer, data):
    base = pico("llama")
    table = analyze(Pair.of_models(base, {"sft": tuned_from(base)}, tokenizer), data, metrics="all", **SMALL)
    for row in table.select(metric=sorted(RESIDUAL)):
        told = not METRICS[row.metric].without_interval(row.n)
        assert row.low <= row.high if told else math.isnan(row.low), row
        assert row.n == (4 if METRICS[row.metric].source in ("tokens", "lens", "own", "heads") else 8), row
        assert row.dataset == "builtin:chain_sum"
    metrics = set(table.metrics)
    assert {"cka.null", "cka_debiased.null", "cosine_similarity.null"} <= metrics
    assert {f"{name}.precision_floor" for name in ("cka_debiased", "cosine_similarity", "logit_kl")} <= metrics
    assert {f"{name}.split_floor" for name in ("effective_rank", "prompt_entropy", "l2_norm")} <= metrics
    assert (table.select(metric="cka_debiased.precision_floor").frame.value < 1).all()


def test_a_base_against_itself_has_not_changed(family, pico, tokenizer, data):
    model = pico(family)
    table = analyze(Pair.of_models(model, {"same": pico(family)}, tokenizer), data, metrics="all", **SMALL)
    ones = {"cka", "cka_debiased", "logit_agreement", "cosine_similarity", "cosine_centered"}
    for row in table.select(model="same", metric=sorted(RELATIVE)):
        if row.metric in ("cka", "cka_debiased", "logit_agreement"):
            assert row.value == 1, row
        elif row.metric in ones:
            assert row.value == pytest.approx(1, abs=1e-12), row
        elif row.metric == "procrustes":
            assert row.value == pytest.approx(0, abs=1e-6), row
        else:
            assert row.value == 0, row
    ours, theirs = (table.select(model=name) for name in ("base", "same"))
    for name in sorted(RESIDUAL - RELATIVE):
        assert ours.curve(name, "base").value.tolist() == theirs.curve(name, "same").value.tolist()


def test_a_lone_model_is_refused(pico, tokenizer, data):
    with pytest.raises(MidblockError, match="and there is none"):
        analyze(Pair.of_models(pico("llama"), {}, tokenizer), data)


def test_several_tuned_models_cost_one_base_pass(pico, tuned_from, tokenizer, data):
    base = pico("llama")
    tuned = {name: tuned_from(base, seed=seed) for seed, name in enumerate(("sft", "dpo", "rl"), start=1)}
    counts = dict.fromkeys(["base", *tuned], 0)

    def count(name):
        def hook(module, args):
            counts[name] += 1

        return hook

    for name, model in {"base": base, **tuned}.items():
        Anatomy.of(model).blocks[0].register_forward_pre_hook(count(name))
    # own change runs tuned blocks once more
    options = {**SMALL, "batch_tokens": 200, "precision_floor": False, "weights": False, "metrics": "p1,logit_kl"}
    together = analyze(Pair.of_models(base, tuned, tokenizer), data, **options)
    assert len(set(counts.values())) == 1
    assert counts["base"] > 2
    alone = analyze(Pair.of_models(base, {"dpo": tuned["dpo"]}, tokenizer), data, **options)
    # A column's sum is rounded differently at the end of a wider table.
    assert_same(together.select(model=["base", "dpo"]), alone, check_exact=False, rtol=1e-12)


def test_layers_restrict_what_is_measured(pico, tuned_from, tokenizer, data):
    base = pico("llama")
    pair = Pair.of_models(base, {"sft": tuned_from(base)}, tokenizer)
    whole, part = (analyze(pair, data, metrics="all", layers=layers, **SMALL) for layers in ("all", "1-2"))
    assert {row.layer for row in part if "kl_answers" not in row.metric} == {1, 2}
    # what block 1 adds needs block 0, which was not measured
    only = without(whole.select(layer=[1, 2]), "change_increment", "change_reaction", "own_share")
    # The bootstrap draws the same prompts for every column, so leaving layers out moves nothing.
    part_only = without(part, "change_increment", "change_reaction", "own_share").select(layer=[1, 2])
    assert_same(part_only, only, check_exact=False, rtol=1e-9, atol=1e-12)
    # What block 2 adds needs block 1, which was measured.
    assert part.curve("change_increment", "sft").layer.tolist() == [2]
    with pytest.raises(MidblockError, match="names block 3; the model has 0 to 2"):
        analyze(pair, data, layers="1-3", **SMALL)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_size_of_batches_does_not_matter(family, pico, tuned_from, tokenizer, data):
    base = pico(family)
    pair = Pair.of_models(base, {"sft": tuned_from(base)}, tokenizer)
    # A spectrum's smallest values and a 0/1 threshold amplify rounding; everything else is compared.
    options = {**SMALL, "metrics": "all", "precision_floor": False, "weights": False}
    one, many = (analyze(pair, data, batch_tokens=tokens, **options) for tokens in (1, 4096))
    fragile = ("condition_number", "rank_deficiency", "sparsity")
    assert_same(without(one, *fragile), without(many, *fragile), check_exact=False, rtol=2e-3, atol=2e-4)


def test_the_seed_decides_the_prompts(pico, tuned_from, tokenizer):
    base = pico("llama")
    pair = Pair.of_models(base, {"sft": tuned_from(base)}, tokenizer)
    options = {**SMALL, "metrics": "p1", "weights": False, "precision_floor": False}
    first, again, other = (analyze(pair, "builtin:chain_sum", seed=seed, **options) for seed in (0, 0, 1))
    assert_same(first, again)
    assert first.curve("cka_debiased", "sft").value.tolist() != other.curve("cka_debiased", "sft").value.tolist()


def test_a_resized_vocabulary_is_compared_where_it_is_shared(pico, tuned_from, saved, tmp_path, data):
    base = pico("llama")
    more = tuned_from(base)
    more.resize_token_embeddings(305)
    with torch.no_grad():
        more.lm_head.weight[300:] = 100.0  # had these a say, no prediction would agree
    pair = load_pair(saved(base, "start"), saved(more, "more"), device="cpu")
    table = analyze(pair, data, output_dir=tmp_path / "run", **SMALL)
    assert table.curve("logit_agreement", "more").value.max() > 0.3
    assert table.curve("delta_rel", "more", "embedding").value.item() < 0.2
    assert table.curve("delta_rel", "more", "head").n.item() == 300 * 32
    notes = " ".join(read_record(tmp_path / "run")["notes"])
    assert "Vocabularies differ in size (base 300, more 305): the 300 shared rows are compared." in notes
    assert "model.embed_tokens.weight has 300 rows in the base, 305 in more: the first 300 are compared." in notes


def spoil(folder, name, value):
    state = load_file(f"{folder}/model.safetensors")
    state[name].view(-1)[5] = value
    save_file(state, f"{folder}/model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["start", "sft"])
def test_a_weight_that_is_no_number_is_named(pico, tuned_from, saved, side, value):
    base = pico("llama")
    folders = {"start": saved(base, "start"), "sft": saved(tuned_from(base), "sft")}
    spoil(folders[side], "model.layers.1.mlp.up_proj.weight", value)
    owner = {"start": "the base", "sft": "sft"}[side]
    with pytest.raises(MidblockError, match=rf"NaN or Inf in the weight model.layers.1.mlp.up_proj.weight of {owner}"):
        analyze(load_pair(*folders.values()), weights_only=True)
    with pytest.raises(MidblockError, match=rf"^{side.replace('start', 'base')}: NaN or Inf in .* layer 1"):
        analyze(load_pair(*folders.values(), device="cpu"), "builtin:chain_sum", **SMALL)


def test_weights_only_builds_no_model_and_reads_no_data(pico, tuned_from, saved, tmp_path):
    base = pico("llama")
    pair = load_pair(saved(base, "start"), saved(tuned_from(base), "sft"))
    table = analyze(pair, "no/such/data.jsonl", weights_only=True, metrics="all", output_dir=tmp_path / "run")
    assert [variant.loaded for variant in pair] == [None, None]
    assert set(table.metrics) == WEIGHTS
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.yaml", "layers.csv", "layers.parquet", "run.json", "summary.json",
    ]  # fmt: skip


def test_sharded_is_unsharded(family, pico, tuned_from, saved):
    base = pico(family)
    tuned = tuned_from(base)
    one = load_pair(saved(base, "one/start"), saved(tuned, "one/sft"))
    many = load_pair(saved(base, "many/start", max_shard_size="20KB"), saved(tuned, "many/sft"))
    whole, sharded = (analyze(pair, weights_only=True, metrics="all").frame for pair in (one, many))
    keys = ["layer", "module", "metric"]
    whole, sharded = (frame.sort_values(keys, ignore_index=True) for frame in (whole, sharded))
    # Sums over a module's tensors come in the order of the files.
    pd.testing.assert_frame_equal(whole, sharded, check_exact=False, rtol=1e-12)


def test_in_memory_is_on_disk(family, pico, tuned_from, saved, data):
    base = pico(family)
    tuned = tuned_from(base)
    options = {**SMALL, "metrics": "p1", "precision_floor": False}
    pair = load_pair(saved(base, "start"), saved(tuned, "sft"), device="cpu")
    disk = analyze(pair, data, **options)
    memory = analyze(Pair.of_models(base, {"sft": tuned}, pair.tokenizer), data, **options)
    assert_same(disk.select(module="residual"), memory.select(module="residual"))
    assert disk.curve("delta_rel", "sft", "block").value.tolist() == pytest.approx(
        memory.curve("delta_rel", "sft", "block").value.tolist(), rel=1e-12
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama", ["q_proj", "o_proj", "down_proj"]),
        ("gpt2", ["c_attn", "c_fc"]),
        ("phi3", ["qkv_proj", "gate_up_proj"]),
    ],
)
def test_an_adapters_weights_are_those_of_the_merged_model(family, targets, pico, saved, tmp_path):
    start = saved(pico(family), "start")
    model = AutoModelForCausalLM.from_pretrained(start)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(start), tmp_path / "adapter")
    merged = saved(merged.merge_and_unload(), "merged")
    keys = ["layer", "module", "metric"]
    ours, theirs = (
        analyze(load_pair(start, each), weights_only=True, metrics="all").frame.set_index(keys)
        for each in (str(tmp_path / "adapter"), merged)
    )
    # The merged file holds float32: its change has a tail of rounding, which the factors have not.
    exact = [name for name in WEIGHTS if name not in ("changed_fraction", "delta_effective_rank")]
    ours, theirs = (
        frame[frame.index.get_level_values("metric").isin(exact)].value.sort_index() for frame in (ours, theirs)
    )
    assert len(ours[ours > 0]) > 20
    pd.testing.assert_series_equal(ours, theirs, check_exact=False, rtol=1e-4, atol=1e-4)


class StopAfter:
    """Progress that gives up, as a person pressing Ctrl-C does."""

    def __init__(self, batches):
        self.left = batches

    def phase(self, title, total):
        return self.advance if title == "measuring" else lambda amount: None

    def advance(self, amount):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_a_run_stopped_anywhere_goes_on(pico, tuned_from, saved, tmp_path, data, monkeypatch):
    monkeypatch.setattr("midblock.analysis.work.Measurement", partial(Measurement, save_seconds=0.0))
    base = pico("llama")
    pair = load_pair(saved(base, "start"), saved(tuned_from(base), "sft"), device="cpu")
    options = {**SMALL, "batch_tokens": 200}
    whole = analyze(pair, data, output_dir=tmp_path / "whole", **options)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        analyze(pair, data, output_dir=run, progress=StopAfter(2), **options)
    assert read_record(run)["status"] == "running"
    assert not (run / "layers.parquet").exists()
    assert sorted(path.name for path in (run / "partial").iterdir()) == ["000001.safetensors", "000002.safetensors"]
    with pytest.raises(MidblockError, match="exists already"):
        analyze(pair, data, output_dir=run, **options)
    with pytest.raises(MidblockError, match="made with other settings: seed: 0 then, 1 now"):
        analyze(pair, data, output_dir=run, resume=True, seed=1, **options)
    assert_same(analyze(pair, data, output_dir=run, resume=True, **options), whole)
    assert read_record(run)["status"] == "done"
    # A finished run is read, not made again.
    assert_same(analyze(pair, data, output_dir=run, resume=True, progress=StopAfter(1), **options), whole)


def write_prompts(path, word="many"):
    path.write_text("".join(json.dumps({"text": f"How {word} apples are {n} and {n * n}?"}) + "\n" for n in range(8)))
    return str(path)


@pytest.mark.parametrize("finished", [True, False])
def test_inputs_that_changed_are_not_resumed(pico, tuned_from, saved, tmp_path, finished):
    base, run, prompts = pico("llama"), tmp_path / "run", tmp_path / "prompts.jsonl"
    folders = saved(base, "start"), saved(tuned_from(base), "sft")
    resume = partial(analyze, load_pair(*folders, device="cpu"), write_prompts(prompts), output_dir=run, resume=True)
    if finished:
        resume(**SMALL)
    else:
        with pytest.raises(KeyboardInterrupt):
            resume(progress=StopAfter(1), **SMALL)
        write_prompts(prompts, "few")
        with pytest.raises(MidblockError, match=r"the data changed since \(--overwrite"):
            resume(**SMALL)
        write_prompts(prompts)
    saved(tuned_from(base, seed=5), "sft")
    record = (run / "run.json").read_bytes()
    with pytest.raises(MidblockError, match=r"the weights of sft changed since \(--overwrite"):
        resume(**SMALL)
    assert (run / "run.json").read_bytes() == record


def test_models_in_memory_are_not_resumed(pico, tuned_from, tokenizer, tmp_path, data):
    base = pico("llama")
    pair = Pair.of_models(base, {"sft": tuned_from(base)}, tokenizer)
    analyze(pair, data, output_dir=tmp_path / "run", resume=True, **SMALL)  # there is nothing yet
    with pytest.raises(MidblockError, match="base is a model in memory"):
        analyze(pair, data, output_dir=tmp_path / "run", resume=True, **SMALL)


@pytest.mark.parametrize("options", [{}, {"resume": True, "seed": 1}])
def test_a_folder_is_refused_before_anything_is_loaded(pico, tuned_from, saved, tmp_path, options):
    base, run = pico("llama"), tmp_path / "run"
    folders = saved(base, "start"), saved(tuned_from(base), "sft")
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    analyze(load_pair(*folders, device="cpu"), prompts, output_dir=run, **SMALL)
    (tmp_path / "prompts.jsonl").unlink()
    again = load_pair(*folders, device="cpu")
    with pytest.raises(MidblockError, match=r"exists already|other settings: seed"):
        analyze(again, prompts, output_dir=run, **SMALL, **options)
    with pytest.raises(MidblockError):  # the data are gone: the older run stays
        analyze(again, prompts, output_dir=run, overwrite=True, **SMALL)
    assert (run / "layers.parquet").exists()
    assert [variant.loaded for variant in again] == [None, None]


def test_the_config_names_the_split_that_was_read(pico, tuned_from, saved, tmp_path, data):
    base = pico("llama")
    pair = load_pair(saved(base, "start"), saved(tuned_from(base), "sft"), device="cpu")
    named = {name: tmp_path / name for name in ("by_name", "in_memory")}
    for name, given in {"by_name": "builtin:chain_sum", "in_memory": data}.items():
        analyze(pair, given, output_dir=named[name], **SMALL)
    configs = {name: yaml.safe_load((path / "config.yaml").read_text()) for name, path in named.items()}
    assert (configs["by_name"]["data"], configs["by_name"]["split"]) == ("builtin:chain_sum", "test")
    assert "data" not in configs["in_memory"]
    assert any("given in memory" in note for note in read_record(named["in_memory"])["notes"])
    analyze(pair, "builtin:chain_sum", output_dir=named["by_name"], resume=True, **SMALL)


class NoMemory:
    def phase(self, title, total):
        if title == "measuring":
            raise torch.OutOfMemoryError
        return lambda amount: None


def test_models_come_back_in_their_own_mode_even_without_memory(pico, tuned_from, tokenizer, data):
    base = pico("llama").train()
    base.model.layers[1].eval()
    modes = [module.training for module in base.modules()]
    pair = Pair.of_models(base, {"sft": tuned_from(base)}, tokenizer)
    with pytest.raises(MidblockError, match=r"out of memory .*--batch-tokens.*--resume goes on"):
        analyze(pair, data, progress=NoMemory(), **SMALL)
    assert [module.training for module in base.modules()] == modes
    analyze(pair, data, **SMALL)
    assert [module.training for module in base.modules()] == modes


def test_a_base_on_several_devices_has_no_precision_floor(pico, tuned_from, tokenizer, tmp_path, data):
    base = pico("llama")
    base.hf_device_map = {"model": 0, "lm_head": 1}
    table = analyze(
        Pair.of_models(base, {"sft": tuned_from(base)}, tokenizer), data, output_dir=tmp_path / "run", **SMALL
    )
    assert not any(metric.endswith(".precision_floor") for metric in table.metrics)
    assert any(note.startswith("No precision floor") for note in read_record(tmp_path / "run")["notes"])


class FillsTheDisk:
    """Progress during which the disk becomes full: the pieces' temporary files lead to a device without space."""

    def __init__(self, run):
        self.run = run

    def phase(self, title, total):
        if title == "measuring":
            (self.run / "partial").mkdir()
            for step in range(1, 20):
                name = f".{step:06d}.safetensors.{os.getpid()}.tmp"
                (self.run / "partial" / name).symlink_to("/dev/full")
        return lambda amount: None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_one_line_and_the_run_can_go_on(pico, tuned_from, saved, tmp_path, data):
    base = pico("llama")
    pair = load_pair(saved(base, "start"), saved(tuned_from(base), "sft"), device="cpu")
    with pytest.raises(MidblockError, match=r"no space left for .*partial"):
        analyze(pair, data, output_dir=tmp_path / "run", progress=FillsTheDisk(tmp_path / "run"), **SMALL)
    table = analyze(pair, data, output_dir=tmp_path / "run", resume=True, **SMALL)
    assert_same(table, analyze(pair, data, **SMALL))


# The command line as it is, but for the half minute between two saved pieces.
EAGER = """
import sys
import torch
torch.set_num_threads(1)
from functools import partial
from midblock.cli.main import main
from midblock.analysis import work as analysis_work
analysis_work.Measurement = partial(analysis_work.Measurement, save_seconds=0.0)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_kill_9_and_resume_is_an_uninterrupted_run(pico, tuned_from, saved, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": f"What is {n} + {n * n}? " * 4}) + "\n" for n in range(24)))
    base = pico("llama")
    command = ["analyze", saved(base, "start"), saved(tuned_from(base), "sft"), "--data", str(prompts)]
    command += [
        "--device",
        "cpu",
        "--batch-tokens",
        "1",
        "--num-samples",
        "24",
        "--num-token-samples",
        "8",
        "--metrics",
        "cka,l2_norm,prompt_entropy,logit_kl",
    ]
    run, other = tmp_path / "run", tmp_path / "other"
    again = [sys.executable, "-c", EAGER, *command, "--output-dir", str(run)]

    process = subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list((run / "partial").glob("[0-9]*.safetensors")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    process.stderr.close()
    assert 1 <= len(list((run / "partial").glob("[0-9]*.safetensors"))) < 24
    assert read_record(run)["status"] == "running"
    assert not (run / "layers.parquet").exists()

    resumed = subprocess.run([*again, "--resume"], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    whole = subprocess.run([*again[:-1], str(other)], capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    assert_same(LayerTable.read(run), LayerTable.read(other))
    assert (run / "layers.parquet").read_bytes() == (other / "layers.parquet").read_bytes()
    assert not (run / "partial").exists()
    assert read_record(run)["status"] == "done"


@pytest.mark.parametrize(
    ("dtype", "amount", "said"),
    [
        (torch.float32, 1e-4, "This is below what bfloat16 could show, but about"),
        (torch.float32, 0.1, ""),
        (torch.bfloat16, 1e-4, "This is no more than rounding to bfloat16 changes."),
    ],
)
def test_a_small_change_is_held_against_the_precision_of_the_run(
    dtype, amount, said, pico, tuned_from, tokenizer, data, tmp_path
):
    base = pico("llama")
    models = [base.to(dtype), tuned_from(base, amount).to(dtype)]
    options = {**SMALL, "metrics": "change_increment,change_intensity_relative", "weights": False}
    analyze(Pair.of_models(models[0], {"sft": models[1]}, tokenizer), data, output_dir=tmp_path / "run", **options)
    headline = json.loads((tmp_path / "run" / "summary.json").read_text())["headline"]
    assert said in headline
    assert ("This is" in headline) == bool(said)
