"""The model card: a header the hub can read, true numbers, and the papers that were used and no others."""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from midblock.base import LayerPlan
from midblock.base.quoting import printable_lines
from midblock.checkpoints import LoadSettings, open_checkpoint
from midblock.checkpoints.checkpoint import Checkpoint
from midblock.checkpoints.reference import ModelReference
from midblock.runs.surroundings import RECORDED_PACKAGES
from midblock.tuning.loop.card import PAPERS, model_card
from midblock.tuning.loop.summary import public_files
from midblock.tuning.loop.tune_settings import TuneSettings
from midblock.tuning.place.prepared import prepare

RECORD = {
    "data": {
        "reference": "sums.jsonl",
        "split": "",
        "num_samples": 32,
        "target_tokens": 12345,
        "content_hash": "d" * 64,
    },
    "models": [{"weight_hash": "e" * 64}],
    "versions": dict.fromkeys(RECORDED_PACKAGES, "1.2.3"),
}


def card(folder, layers="010", base=None, command=None, record=RECORD, **options):
    settings = TuneSettings(layers=layers, **options)
    checkpoint = open_checkpoint(str(folder))
    plan = LayerPlan.parse(layers, 3)
    prepared = prepare(checkpoint, plan, settings, LoadSettings(device="cpu", dtype="float32"))
    return model_card(settings, base or checkpoint, record, prepared.as_record(settings), command)


def header(text):
    _, head, _ = text.split("---\n", 2)
    return yaml.safe_load(head)


def facts(text):
    cells = [line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.startswith("| ")]
    return {key: value for key, value, *_ in (cell for cell in cells if len(cell) == 2)}


def on_hub(folder):
    return Checkpoint(ModelReference("org/name@v1", "hub", "org/name", "v1"), folder)


@pytest.mark.parametrize(("method", "library"), [("lora", "peft"), ("full", "transformers")])
def test_the_header_is_what_the_hub_reads(llama, method, library):
    text = card(llama, base=on_hub(llama), method=method)
    assert header(text)["base_model"] == "org/name"
    assert header(text)["library_name"] == library
    assert header(text)["pipeline_tag"] == "text-generation"
    assert ("lora" in header(text)["tags"]) == (method == "lora")
    assert ModelCard(text).data.to_dict() == header(text)


def test_a_base_that_is_not_on_the_hub_is_named_below_the_header_only(llama):
    """The hub refuses an upload whose card names a folder as its base model."""
    text = card(llama)
    assert "base_model" not in header(text)
    assert facts(text)["Base"].startswith(f"{llama.name}, weights")


def test_the_facts_of_an_adapter(llama):
    told = facts(card(llama, lora_r=4, target_modules="q_proj", lora_scale=2.0))
    assert told["Blocks tuned"] == "1 of 3"
    assert told["Method"] == "LoRA, rank 4, scale 2.0"
    assert told["Trained parameters"].startswith("256 of ")
    assert told["By part"] == "attention 256"
    assert told["Loss"] == "nll over completions"
    assert told["Held on to"] == "nothing"
    assert told["Data"].startswith("sums.jsonl, split –, 32 examples, 12,345 target tokens (SHA-256 dddddddd")
    assert "SHA-256 eeee" in told["Base"]
    assert all(f"{name} 1.2.3" in told["Versions"] for name in RECORDED_PACKAGES)


def test_unequal_ranks_and_scales_are_a_span(llama):
    told = facts(card(llama, layers="8,4,2", lora_alpha=8.0, target_modules="q_proj"))
    assert told["Method"] == "LoRA, rank 2 to 8, scale 1.0 to 4.0"
    assert facts(card(llama, use_dora=True))["Method"].startswith("DoRA, rank 16")


def test_the_facts_of_full_tuning(llama):
    told = facts(card(llama, method="full", anchor="rpsft", anchor_k="8", loss="dft", train_on_prompt=True, seed=7))
    assert told["Method"] == "full: the weights themselves"
    assert told["Held on to"] == "rpsft: k 8, λ 1, scope block"
    assert told["Loss"] == "dft over prompt and completion"
    assert told["Seed"] == "7"


@pytest.mark.parametrize(
    ("options", "papers"),
    [
        ({}, {"layers", "lora"}),
        ({"method": "full"}, {"layers"}),
        ({"loss": "dft"}, {"layers", "lora", "dft"}),
        ({"method": "full", "anchor": "rpsft"}, {"layers", "rpsft"}),
        ({"anchor": "rpsft", "loss": "dft"}, {"layers", "lora", "rpsft", "dft"}),
    ],
)
def test_the_papers_that_were_used(llama, options, papers):
    text = card(llama, **options)
    cited = {name for name, (title, number) in PAPERS.items() if f"- {title}, [arXiv {number}]" in text}
    assert cited == papers
    assert text.count("https://arxiv.org/abs/") == len(papers)


def test_the_command_stands_as_it_was_given(llama):
    command = "midblock tune org/name sums.jsonl --layers 010"
    assert f"```\n{command}\n```" in card(llama, command=command)
    assert "```" not in card(llama)


def test_a_bar_in_a_name_does_not_break_the_table(llama):
    odd = {**RECORD, "data": {**RECORD["data"], "reference": "a|b.jsonl"}}
    line = next(line for line in card(llama, record=odd).splitlines() if line.startswith("| Data"))
    assert r"a\|b.jsonl" in line
    assert line.replace(r"\|", "").count("|") == 3


HOSTILE = [
    "a\n---\nbase_model: evil\n---\n# Title",
    "```\nrm -rf ~\n```",
    "`x` <script>alert(1)</script> ![i](http://x/y) [l](javascript:x) **b** | c",
    "\x1b[31m\u202e\x85\u2028",
    "$(touch HERE)",
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_names_are_text_in_the_card(llama, text):
    """By a reader of Markdown: the same elements as with plain names, and the header as it was."""
    from markdown_it import MarkdownIt

    def made(name):
        record = {**RECORD, "data": {**RECORD["data"], "reference": name, "split": name}}
        base = Checkpoint(ModelReference(name, "gguf", f"x/{name.replace('/', '')}.gguf"), llama)
        return card(llama, base=base, record=record, command=shlex.join(["midblock", "tune", name]))

    plain, hostile = made("plain"), made(text)
    assert header(hostile) == header(plain)
    assert ModelCard(hostile).data.to_dict() == header(plain)
    read = MarkdownIt("commonmark").enable("table")
    kinds = [[token.type for token in read.parse(text.split("---\n", 2)[2])] for text in (plain, hostile)]
    assert kinds[0] == kinds[1]
    inside = [child for token in read.parse(hostile.split("---\n", 2)[2]) for child in token.children or ()]
    assert {child.type for child in inside} <= {"text", "text_special", "link_open", "link_close"}
    assert not set(hostile) & set("\x1b\u202e\x85\u2028")
    lines = next(token.content for token in read.parse(hostile) if token.type == "fence")
    assert shlex.split(lines) == ["midblock", "tune", printable_lines(text)]


def test_no_folder_of_this_machine_is_in_what_is_uploaded(llama, sums, tmp_path, tuned):
    """Nor in any other file of the result, whatever it is about; the local files keep the base's place."""
    command = shlex.join(
        ["midblock", "tune", str(llama), f"--data={sums}", "--layers", "010", "-o", str(tmp_path / "x")]
    )
    artifact = tuned(max_steps=1, command=command)
    uploaded = public_files(artifact.path)
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= uploaded.keys()
    for name, content in uploaded.items():
        content = content if isinstance(content, bytes) else content.read_bytes()
        for place in (llama.parent, sums.parent, tmp_path, Path.home()):
            assert str(place).encode() not in content, name
    config = json.loads(uploaded["adapter_config.json"])
    assert config["base_model_name_or_path"] == llama.name
    own = json.loads((artifact.path / "adapter_config.json").read_text())
    assert own == {**config, "base_model_name_or_path": str(llama)}
    assert "midblock tune start --data=sums.jsonl --layers 010 -o x" in uploaded["README.md"].read_text()


@pytest.mark.parametrize("method", ["full"])
def test_a_whole_checkpoint_is_uploaded_as_it_is(llama, tmp_path, tuned, method):
    artifact = tuned(max_steps=1, method=method)
    uploaded = public_files(artifact.path)
    assert uploaded == {file.name: file for file in artifact.path.iterdir()}
    assert not any(str(tmp_path.parent).encode() in file.read_bytes() for file in uploaded.values())
