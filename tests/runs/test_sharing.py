"""Two real processes on this machine (gloo) end with one process's numbers to the bit, or together with one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from tests.runs.shared_runs import run

from midblock.base import LayerTable
from midblock.cli.main import main
from midblock.runs.record import read_record

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SCRIPT = Path(__file__).with_name("shared_runs.py")
SIZES = {"num_samples": 12, "batch_tokens": 128}
RUNS = {
    "analyze": {"data": "builtin:chain_sum", "num_token_samples": 8, "controls": "equal-step", **SIZES},
    "probe": {"data": "builtin:chain_sum", **SIZES},
    "swap": {
        "data": "builtin:chain_sum", "segments": "3", "generate": True, "generate_samples": 4, "max_new_tokens": 2,
        **SIZES,
    },
    "evaluate": {
        "tasks": "exact_match:builtin:chain_sum", "num_samples": 70, "max_new_tokens": 2,
        "general": "builtin:everyday", "general_samples": 8,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory, pico, tokenizer) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "tuned")):
        pico("llama", seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return [str(folder / "base"), str(folder / "tuned")]


def launched(folder: Path, runs: list[dict]) -> subprocess.CompletedProcess[str]:
    (folder / "plan.json").write_text(json.dumps(runs))
    here = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    command = [*LAUNCH, str(SCRIPT), str(folder / "plan.json")]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=here)


@pytest.fixture(scope="module")
def shared(models, tmp_path_factory) -> Path:
    """A folder with every verb's run of one process and of two, and with one that the second process could not end."""
    folder = tmp_path_factory.mktemp("shared")
    planned = []
    for verb, options in RUNS.items():
        run(verb, models, output_dir=str(folder / f"one-{verb}" / "run"), **options)
        planned.append({"verb": verb, "models": models, "output_dir": str(folder / f"two-{verb}" / "run"), **options})
    planned.append({**planned[1], "output_dir": str(folder / "two-blocks" / "run"), "max_memory": "4GB"})
    planned.append({**planned[1], "output_dir": str(folder / "failed"), "how": "fails"})
    done = launched(folder, planned)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("verb", ["analyze", "probe", "swap"])
def test_two_processes_find_what_one_finds(verb, shared):
    one, two = (LayerTable.read(shared / f"{name}-{verb}" / "run").frame for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    assert not (shared / f"two-{verb}" / "run" / "partial").exists()


def test_two_processes_walk_block_by_block_as_one_with_whole_models(shared):
    one, two = (LayerTable.read(shared / name / "run").frame for name in ("one-probe", "two-blocks"))
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    assert read_record(shared / "two-blocks" / "run")["engine"]["kind"] == "block by block"


def test_two_processes_score_as_one(shared):
    one, two = (shared / f"{name}-evaluate" / "run" for name in ("one", "two"))
    assert (one / "samples.jsonl").read_text() == (two / "samples.jsonl").read_text()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, two)]
    assert summaries[0] == summaries[1]
    assert summaries[0]["forgetting"][0]["drift"] is not None
    assert [each["weight_hash"] for each in read_record(one)["models"]] == [
        each["weight_hash"] for each in read_record(two)["models"]
    ]


def test_what_one_process_cannot_go_on_with_ends_all_and_is_told_once(shared):
    told = [(shared / f"failed.error{number}").read_text() for number in (0, 1)]
    line = "the second one cannot go on (let it be)"
    assert told == [f"MidblockError: {line}", f"ToldError: {line}"]
    assert read_record(shared / "failed")["status"] == "running"
    assert not (shared / "failed" / "layers.parquet").exists()


def test_a_killed_process_ends_the_run_and_it_goes_on(models, shared, tmp_path):
    options = {"verb": "probe", "models": models, "output_dir": str(tmp_path / "run"), **RUNS["probe"]}
    done = launched(tmp_path, [{**options, "how": "killed"}])
    assert done.returncode != 0
    assert not (tmp_path / "run" / "layers.parquet").exists()
    assert launched(tmp_path, [{**options, "resume": True}]).returncode == 0
    one, two = (LayerTable.read(folder).frame for folder in (shared / "one-probe" / "run", tmp_path / "run"))
    pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_verbs_for_one_process_say_so_once(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for number in ("0", "1"):
        monkeypatch.setenv("RANK", number)
        assert main(["merge", *models, "--output-dir", str(tmp_path / "x")]) == 2
        said.append(capsys.readouterr().err)
    assert said[0].startswith("midblock: merge has work for one process, and 2 were started (several share the work of")
    assert said[1] == ""
    assert not (tmp_path / "x").exists()
