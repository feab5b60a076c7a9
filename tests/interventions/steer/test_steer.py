import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from midblock.analysis import analyze
from midblock.base import LayerTable, MidblockError, Silent
from midblock.checkpoints import load_pair
from midblock.data import load_dataset
from midblock.interventions import Directions, steer
from midblock.interventions.answering import read_answers
from midblock.interventions.steer.answers import Writing
from midblock.interventions.steer.kept import KeptValues
from midblock.interventions.steer.samples import Samples
from midblock.interventions.steer.settings import SteerSettings
from midblock.interventions.steer.source import DirectionSource
from midblock.runs.stopping import STOPPING, Stopped

DATA = "builtin:chain_sum"
SMALL = {"num_samples": 6, "num_directions_samples": 8, "max_new_tokens": 8, "num_texts": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, taught, pico, tokenizer):
    """`base` and `sft`, two llamas; `plain` and `shifted`, two GPT-2 that differ by a bias behind block 1."""
    folder = tmp_path_factory.mktemp("steer")
    shifted = copy.deepcopy(pico("gpt2"))
    with torch.no_grad():
        bias = shifted.transformer.h[1].mlp.c_proj.bias
        bias.add_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(0)))
    models = {"base": taught[0], "sft": taught[1], "plain": pico("gpt2"), "shifted": shifted}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def done(folder):
    """A finished run."""
    steer(
        str(folder / "base"),
        str(folder / "sft"),
        DATA,
        output_dir=folder / "done",
        blocks="0-1",
        alpha=(0.5, 1.0),
        random_draws=2,
        **SMALL,
    )
    return folder / "done"


def read(path):
    return json.loads(path.read_text())


def test_a_shift_that_is_all_there_is_leads_the_whole_way(here):
    table = steer("plain", "shifted", DATA, output_dir="exact", blocks="1", alpha=(1.0, 0.25), random_draws=1, **SMALL)
    summary = read(here / "exact" / "summary.json")
    first = summary["alphas"][0]
    assert first["gap_closed"] == pytest.approx(1, abs=1e-4)
    assert first["steered"]["value"] == pytest.approx(summary["tuned_nll"]["value"], abs=1e-5)
    assert first["random_gap_closed"] < 0.9
    assert summary["headline"].startswith(
        "Adding the mean shift at block 1 (α 1, the best of 2) closes 100 % (95 % interval 100 to 100) of the gap"
    )
    for text in read(here / "exact" / "texts.json"):
        assert text["steered"]["1"] == text["tuned"]
        assert text["base"] != text["tuned"]
    alone = table.curve("steer_nll_change", "shifted")
    gap = summary["base"]["value"] - summary["tuned_nll"]["value"]
    assert alone.value[0] == 0  # below the bias the models are the same
    assert alone.value[1] == pytest.approx(-gap, abs=1e-5)
    explained = table.curve("steer_explained", "shifted")
    assert explained.layer.tolist() == [1, 2]
    assert explained.value[0] == pytest.approx(1)
    assert table.curve("steer_nll_change.random", "shifted").value[1] > alone.value[1]


def test_what_the_run_folder_holds(done):
    summary, texts = read(done / "summary.json"), read(done / "texts.json")
    assert (summary["tuned"], summary["blocks"], summary["kind"], summary["models"]) == ("sft", "0-1", "mean_shift", [])
    assert [record["alpha"] for record in summary["alphas"]] == [0.5, 1.0]
    for record in summary["alphas"]:
        assert record["random_change"]["low"] <= record["random_change"]["value"] <= record["random_change"]["high"]
        change = record["steered"]["value"] - summary["base"]["value"]
        assert record["change"]["value"] == pytest.approx(change)
        gap = summary["base"]["value"] - summary["tuned_nll"]["value"]
        if record["gap_closed"] is not None:
            assert record["gap_closed"] == pytest.approx(-change / gap)
    assert [set(text) for text in texts] == [{"prompt", "base", "tuned", "steered"}] * 2
    assert set(texts[0]["steered"]) == {"0.5", "1"}
    table = LayerTable.read(done)
    names = ["steer_norm", "steer_norm_relative", "steer_explained", "steer_nll_change", "steer_nll_change.random"]
    assert sorted(table.metrics) == sorted(names)
    for name in names:
        assert table.curve(name, "sft").layer.tolist() == [0, 1, 2]
    parts = load_file(done / "directions.safetensors")
    assert sorted(parts) == ["layer.0", "layer.1", "layer.2"]
    assert [float(parts[f"layer.{block}"].norm()) for block in range(3)] == pytest.approx(
        table.curve("steer_norm", "sft").value.tolist()
    )
    assert not (done / "partial").exists()


def writing(settings):
    pair = load_pair("base", "sft", device="cpu")
    return Writing(pair, read_answers(pair, DATA, settings), settings, KeptValues(None), Silent())


def test_answers_are_scored_on_the_ids_that_were_written(here):
    settings = SteerSettings(num_samples=6, max_new_tokens=8)
    written = writing(settings)
    made = written.answers().prompts
    tokenizer, model = written.heldout.tokenizer, written.pair.tuned[0].model
    ended = 0
    for prompt in made:
        example = written.heldout.examples.examples[prompt.index]
        asked = tokenizer(example.prompt + example.separator)["input_ids"]
        assert list(prompt.input_ids[: prompt.answer_start]) == asked
        ids = torch.tensor([asked])
        for token in prompt.input_ids[prompt.answer_start :]:
            assert int(model(ids).logits[0, -1].argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        answer = prompt.input_ids[prompt.answer_start :]
        ended += answer[-1] == tokenizer.eos_token_id
        assert len(answer) == 8 or answer[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in answer[:-1]
    assert ended  # the end is scored, too


def test_the_nll_is_that_of_transformers_with_a_hook_of_our_own(done, here):
    settings = SteerSettings(num_samples=6, max_new_tokens=8)
    written = writing(settings)
    made = written.answers().prompts
    parts, model = load_file(done / "directions.safetensors"), written.pair.base.model
    low, high = (parts[f"layer.{block}"][0] for block in (0, 1))

    def add(amount):
        return lambda module, args, output: output + (0.5 * amount).float()

    handles = [
        model.model.layers[block].register_forward_hook(add(amount)) for block, amount in ((0, low), (1, high - low))
    ]
    total = count = 0
    for prompt in made:
        ids = torch.tensor([prompt.input_ids])
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < prompt.answer_start, -100)
        answer = ids.shape[1] - prompt.answer_start
        total += float(model(ids, labels=labels).loss) * answer
        count += answer
    for handle in handles:
        handle.remove()
    assert read(done / "summary.json")["alphas"][0]["steered"]["value"] == pytest.approx(total / count, rel=1e-5)


def test_batches_do_not_matter(done, here):
    steer(
        "base",
        "sft",
        DATA,
        output_dir="narrow",
        blocks="0-1",
        alpha=(0.5, 1.0),
        random_draws=2,
        batch_tokens=1,
        **SMALL,
    )
    ours, theirs = LayerTable.read("narrow").frame, LayerTable.read(done).frame
    assert ours.value.tolist() == pytest.approx(theirs.value.tolist(), rel=1e-3, abs=1e-5)


class StopAt:
    """Progress that is interrupted when a phase begins."""

    def __init__(self, title):
        self.title, self.seen = title, []

    def phase(self, title, total):
        self.seen.append(title)
        if title == self.title:
            raise KeyboardInterrupt
        return lambda amount: None


@pytest.mark.parametrize("title", ["steering", "steering block by block", "estimating directions"])
def test_a_killed_run_ends_with_the_same_numbers(done, here, title):
    shutil.rmtree("killed", ignore_errors=True)
    options = {"output_dir": "killed", "blocks": "0-1", "alpha": (0.5, 1.0), "random_draws": 2, **SMALL}
    arguments = (str(here / "base"), str(here / "sft"), DATA)
    with pytest.raises(KeyboardInterrupt):
        steer(*arguments, progress=StopAt(title), **options)
    kept = {file.name: file.read_bytes() for file in (here / "killed" / "partial").glob("*")}
    watched = StopAt(None)
    table = steer(*arguments, resume=True, progress=watched, **options)
    if title != "estimating directions":
        assert {"answers.json", "directions.safetensors"} <= set(kept)
        assert "estimating directions" not in watched.seen
    assert table.frame.equals(LayerTable.read(done).frame)
    for name in ("summary.json", "texts.json", "directions.safetensors", "config.yaml"):
        assert (here / "killed" / name).read_bytes() == (done / name).read_bytes()
    assert steer(*arguments, resume=True, progress=StopAt("steering"), **options).frame.equals(table.frame)


class AskToStop:
    """Progress that asks the run to stop, as SIGTERM does, at the first step of a phase."""

    def __init__(self, title):
        self.title = title

    def phase(self, title, total):
        return lambda amount: setattr(STOPPING, "asked", title == self.title)


def test_a_run_that_is_stopped_amid_its_scan_goes_on_there(done, here, monkeypatch):
    monkeypatch.setattr(STOPPING, "asked", False)
    options = {"output_dir": "stopped", "blocks": "0-1", "alpha": (0.5, 1.0), "random_draws": 2, **SMALL}
    arguments = (str(here / "base"), str(here / "sft"), DATA)
    with pytest.raises(Stopped):
        steer(*arguments, progress=AskToStop("steering block by block"), **options)
    monkeypatch.setattr(STOPPING, "asked", False)
    (piece,) = (here / "stopped" / "partial").glob("0*.safetensors")
    assert piece.stem == "000002"  # of three blocks, two are behind it
    assert sorted(load_file(piece)) == ["index/block|0", "index/block|1", "values/block|0", "values/block|1"]
    table = steer(*arguments, resume=True, **options)
    assert table.frame.equals(LayerTable.read(done).frame)


def test_directions_of_an_earlier_run_are_used_again(done, here):
    watched = StopAt("estimating directions")
    options = {**SMALL, "alpha": (1.0,), "scan": False, "blocks": "0-1", "random_draws": 2}
    steer(str(here / "base"), done, DATA, output_dir="again", progress=watched, kind="pca", **options)
    before, after = read(done / "summary.json"), read(here / "again" / "summary.json")
    assert after["alphas"] == before["alphas"][1:]
    assert after["kind"] == "mean_shift"  # what the directions are, whatever was asked for
    assert yaml.safe_load((here / "again" / "config.yaml").read_text())["from"] == str(done)
    notes = read(here / "again" / "run.json")["notes"]
    assert any("are those of" in note and "8 samples" in note for note in notes)
    assert not any("may have been estimated" in note for note in notes)
    steer(str(here / "plain"), done, DATA, **{**options, "num_samples": 7, "num_texts": 0}, output_dir="other")
    notes = read(here / "other" / "run.json")["notes"]
    assert any("what is steered here is" in note for note in notes)
    assert any("may have been estimated" in note for note in notes)


def test_an_analysis_names_the_tuned_model(here):
    analyze(
        load_pair("base", "sft", "shifted", device="cpu"),
        DATA,
        output_dir="analysis",
        num_samples=4,
        num_token_samples=0,
        metrics="cosine_similarity",
        weights=False,
    )
    source = DirectionSource.of("analysis")
    assert (source.tuned, source.base, source.ignored, source.earlier) == ("sft", "base", ("shifted",), None)
    assert source.notes("base") == ["analysis compares several tuned models; sft was taken, and not shifted."]
    assert "is about the base base; what is steered here is plain" in source.notes("plain")[0]
    options = {**SMALL, "alpha": (1.0,), "scan": False, "num_texts": 0, "random_draws": 1}
    direct = steer("base", "sft", DATA, output_dir="direct", **options)
    through = steer("base", "analysis", DATA, output_dir="through", **options)
    assert through.frame.equals(direct.frame)
    assert read(here / "through" / "summary.json") == read(here / "direct" / "summary.json")


def test_sources_that_lead_nowhere(here, done):
    def made(name, record, config):
        (here / name).mkdir(exist_ok=True)
        (here / name / "run.json").write_text(json.dumps(record))
        (here / name / "config.yaml").write_text(yaml.safe_dump(config))
        return name

    for name, record, config, message in (
        ("lonely", {"verb": "probe"}, {"base": "base"}, "a run of `midblock probe` that names no tuned model"),
        ("memory", {"verb": "analyze"}, {"tuned": ["in memory"]}, "names no tuned model"),
        ("half", {"verb": "steer", "status": "running"}, {"base": "base"}, "unfinished: it holds no directions yet"),
        ("spoilt", {"verb": "steer", "status": "done", "models": 3}, {"base": "base"}, "holds no directions yet"),
        ("broken", {"verb": "analyze"}, ["base"], "config.yaml is missing or broken"),
    ):
        with pytest.raises(MidblockError, match=message):
            DirectionSource.of(made(name, record, config))
    shutil.copytree(done, "spoiled", dirs_exist_ok=True)
    (here / "spoiled" / "directions.safetensors").write_bytes(b"")
    with pytest.raises(MidblockError, match="holds no directions"):
        steer("base", "spoiled", DATA, **SMALL)
    with pytest.raises(MidblockError, match="no model at nowhere"):
        steer("base", "nowhere", DATA, **SMALL)


def test_changed_directions_stop_a_resume(done, here):
    shutil.copytree(done, "source", dirs_exist_ok=True)
    options = {**SMALL, "alpha": (1.0,), "scan": False, "num_texts": 0, "random_draws": 1, "output_dir": "late"}
    steer(str(here / "base"), "source", DATA, **options)
    file = here / "source" / "directions.safetensors"
    found = Directions.read(file)
    replace(found, n=found.n + 1).write(file)
    with pytest.raises(MidblockError, match="the directions in source changed since"):
        steer(str(here / "base"), "source", DATA, resume=True, **options)


def ending_with(here, tokens):
    """`sft`, which takes some tokens for the end of its answer."""
    shutil.copytree("sft", "ending", dirs_exist_ok=True)
    (here / "ending" / "generation_config.json").write_text(json.dumps({"eos_token_id": tokens}))
    return "ending"


def test_empty_answers_are_left_out_and_counted(here):
    settings = SteerSettings(num_samples=6, max_new_tokens=8)
    begins = [prompt.input_ids[prompt.answer_start] for prompt in writing(settings).answers().prompts]
    empty = begins.count(begins[0])
    assert empty < 6
    options = {**SMALL, "alpha": (1.0,), "scan": False, "num_texts": 6, "random_draws": 1}
    steer("base", ending_with(here, [begins[0]]), DATA, output_dir="some", **options)
    assert f"{empty} of 6 answers of ending were empty: left out." in read(here / "some" / "run.json")["notes"]
    assert read(here / "some" / "summary.json")["prompts"] == 6 - empty
    assert [text["tuned"] for text in read(here / "some" / "texts.json")].count("") >= empty
    with pytest.raises(MidblockError, match="ending answers none of the 6 prompts: it ends at once"):
        steer("base", ending_with(here, list(range(300))), DATA, **options)


def test_an_adapter_and_half_precision(here):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        load_pair("base", "sft").base.model, peft.LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False)
    )
    model.save_pretrained("adapter")
    options = {**SMALL, "alpha": (1.0,), "num_texts": 1, "random_draws": 1}
    for base, source in (("base", "adapter"), ("adapter", "sft")):
        table = steer(base, source, DATA, dtype="bfloat16", output_dir=f"half-{base}", **options)
        assert read(here / f"half-{base}" / "run.json")["models"][0]["dtype"] == "bfloat16"
        assert len(table.curve("steer_nll_change", source)) == 3
        assert table.curve("steer_norm", source).value.min() > 0


def test_models_that_do_not_differ_there(here):
    with pytest.raises(MidblockError, match="base and shifted have the same states at blocks 0: nothing to add"):
        steer("plain", "shifted", DATA, blocks="0", **SMALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": ()}, "no alpha was given"),
        ({"alpha": (0.0,)}, "alpha 0 adds nothing"),
        ({"alpha": (float("nan"),)}, "alpha is nan"),
        ({"alpha": (1.0, 1.0000000001)}, "alpha 1 is given twice"),
        ({"kind": "mean"}, "did you mean 'mean_shift'"),
        ({"adding": "all"}, "unknown way of adding"),
        ({"region": "anser"}, "did you mean 'answer'"),
        ({"random_draws": 0}, "random_draws is 0"),
        ({"num_directions_samples": 1}, "num_directions_samples is 1"),
        ({"blocks": "0-3"}, "names block 3; the model has 0 to 2"),
        ({"kind": "pca", "components": 9}, "9 principal directions cannot be had from 8 samples"),
        ({"alfa": 1.0}, "unknown option 'alfa'"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_bad_options(here, options, message):
    with pytest.raises(MidblockError, match=message):
        steer("base", "sft", DATA, output_dir="bad", **{**SMALL, **options})
    assert not (here / "bad").exists()


def test_the_two_samples_share_nothing(tmp_path):
    settings = SteerSettings(num_samples=5, num_directions_samples=7)
    judged = load_dataset(DATA, num_samples=5)
    samples = Samples.of(DATA, settings, needed=True)
    assert len(samples.estimated_on) == 7
    assert not {each.prompt for each in judged} & {each.prompt for each in samples.estimated_on}
    everything = load_dataset(DATA, num_samples=10)
    split = Samples.of(everything, settings, needed=True)
    ours, theirs = ({each.prompt for each in part} for part in (split.judged, split.estimated_on))
    assert (len(ours), len(theirs)) == (5, 5)  # as many as are left
    assert not ours & theirs
    with pytest.raises(MidblockError, match="judging 5 takes 7"):
        Samples.of(load_dataset(DATA, num_samples=6), settings, needed=True)
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"prompt": f"{n} + 1 =", "completion": str(n + 1)}) + "\n" for n in range(9)))
    with pytest.raises(MidblockError, match="--num-directions-samples 4"):
        Samples.of(str(few), settings, needed=True).estimated_on  # noqa: B018


def test_examples_in_memory_and_no_folder(here):
    before = sorted(here.iterdir())
    table = steer("base", "sft", load_dataset(DATA, num_samples=12), alpha=(1.0,), random_draws=1, **SMALL)
    assert len(table.curve("steer_nll_change", "sft")) == 3
    assert sorted(here.iterdir()) == before
