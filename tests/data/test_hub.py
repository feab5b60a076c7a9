import os
import socket
import subprocess
import sys

import pytest

from midblock.base import MidblockError
from midblock.data import HUB_SETS, LAYOUTS, load_dataset
from midblock.data.hub import HubSet, read_hub

datasets = pytest.importorskip("datasets")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A dataset as the hub serves it, two splits and a card that names them, read by the real library."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    where = tmp_path / "org" / "name"
    for split, size in (("train", 6), ("test", 4)):
        rows = [{"question": f"{split} {number}?", "answer": str(number)} for number in range(size)]
        (where / "data").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(where / "data" / f"{split}.parquet")
    return where


def test_a_folder_is_read_like_a_hub_dataset(folder):
    examples = load_dataset(str(folder))
    assert (len(examples), examples.split, examples.layout) == (6, "train", "question/answer")
    assert len(load_dataset(str(folder), split="test")) == 4


def test_rows_are_taken_in_the_order_asked(folder):
    rows = read_hub("org/name", HubSet(str(folder), None, "test"))
    assert [row["question"] for row in rows.take([2, 0])] == ["test 2?", "test 0?"]


def test_an_unknown_split_names_those_there(folder):
    with pytest.raises(MidblockError, match=r"validation.*\[.*train.*test.*\]|validation.*test.*train"):
        load_dataset(str(folder), split="validation")


def test_an_unknown_configuration(folder):
    with pytest.raises(MidblockError, match=r"org/name: .*nothing") as caught:
        read_hub("org/name", HubSet(str(folder), "nothing", "test"))
    assert "org/name@config" in str(caught.value)


def test_an_empty_split(folder):
    with pytest.raises(MidblockError, match=r"test\[:0\].* corresponds to no data"):
        load_dataset(str(folder), split="test[:0]")
    for split in ("train", "test"):
        path = folder / "data" / f"{split}.parquet"
        datasets.Dataset.from_dict({"text": []}).cast_column("text", datasets.Value("string")).to_parquet(path)
    with pytest.raises(MidblockError, match=r"holds no rows|no data"):
        load_dataset(str(folder), split="test")


def test_a_folder_without_data(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MidblockError, match="empty"):
        load_dataset(str(tmp_path / "empty"))


def test_wikitext_rows_that_are_no_paragraphs_are_no_samples(folder):
    lines = ["", " = Robert Boulter = ", " Robert Boulter is an actor . ", " = = Career = = ", "", " He acted . "]
    datasets.Dataset.from_list([{"text": line} for line in lines]).to_parquet(folder / "data" / "train.parquet")
    (folder / "data" / "test.parquet").unlink()
    source = HubSet(str(folder), None, "train", HUB_SETS["wikitext"].layout)
    rows = read_hub("wikitext", source)
    keep = LAYOUTS["wikitext"].keep
    assert [row["text"].strip() for row in rows.take(range(6)) if keep(row)] == [
        "Robert Boulter is an actor .",
        "He acted .",
    ]


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MidblockError, match=r'pip install "midblock\[hub\]"'):
        load_dataset("gsm8k")


def test_without_a_network_it_says_what_to_do(tmp_path):
    program = """
from midblock.base import MidblockError
from midblock.data import load_dataset
for reference in ("gsm8k", "some-org/some-set@main"):
    try:
        load_dataset(reference)
    except MidblockError as error:
        print(error)
"""
    surroundings = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=surroundings, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert "gsm8k: cannot reach the hub for dataset openai/gsm8k" in lines[0]
    assert "some-org/some-set" in lines[1]
    assert all(".jsonl" in line and "HF_HOME" in line for line in lines)


def test_the_papers_sets_have_known_layouts():
    assert {"gsm8k", "mmlu", "wikitext", "ifeval", "humaneval", "mt_bench", "toxigen"} < set(HUB_SETS)
    assert {entry.layout for entry in HUB_SETS.values()} <= set(LAYOUTS)


CARD = "---\nconfigs:\n- config_name: default\n  data_files: {}\n---\n"


@pytest.mark.parametrize("how", ["above", "absolute", "link"])
def test_a_card_that_reads_files_outside_its_folder_is_noted(folder, tmp_path, how):
    outside = tmp_path / "secret.jsonl"
    outside.write_text('{"text": "mine"}\n')
    (folder / "linked.jsonl").symlink_to(outside)
    named = {"above": "../../secret.jsonl", "absolute": str(outside), "link": "linked.jsonl"}[how]
    (folder / "README.md").write_text(CARD.format(named))
    examples = load_dataset(str(folder))
    assert [example.text for example in examples] == ["mine"]
    assert len(examples.notes()) == 1
    assert f"The dataset folder {folder} has files read that lie outside it: '" in examples.notes()[0]


def test_a_card_of_files_inside_gets_no_note(folder):
    (folder / "README.md").write_text(CARD.format("data/train.parquet"))
    assert load_dataset(str(folder)).notes() == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "train.jsonl")
    with pytest.raises(MidblockError):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize("card", ["configs: [", "configs: 3", "configs:\n- 3", "dataset_info: [1]", "a: " + "[" * 3000])
def test_a_card_of_nonsense_is_one_line_or_passed_over(folder, card):
    (folder / "README.md").write_text(f"---\n{card}\n---\n")
    said = ""
    try:
        load_dataset(str(folder))
    except MidblockError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1


def test_a_silent_hub_costs_seconds(tmp_path):
    program = """
from midblock.base import MidblockError
from midblock.data import load_dataset
import datasets
try:
    load_dataset("some-org/some-set")
except MidblockError as error:
    print(error)
print(datasets.config.HF_HUB_OFFLINE)
"""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        surroundings = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_ENDPOINT": place}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True, timeout=60)
    said = done.stdout.splitlines()
    assert "some-org/some-set: cannot reach the hub for dataset some-org/some-set" in said[0]
    assert said[1:] == ["False"]
