"""A run that is killed at any moment goes on from its last checkpoint and ends with the same losses."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

COMMAND = [sys.executable, "-m", "midblock", "tune"]


def lines_of(folder):
    log = folder / "log.jsonl"
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize(
    "options",
    [
        ["--lora-dropout", "0.2", "--num-train-epochs", "4", "--layers", "001"],
        ["--method", "full", "--anchor", "rpsft", "--anchor-k", "8", "--anchor-scope", "subspace", "--layers", "010"],
    ],
    ids=["lora", "full"],
)
def test_kill_and_resume(options, llama, sums, tmp_path):
    given = [str(llama), "--data", str(sums), "--max-steps", "30", "--learning-rate", "3e-3", "--device", "cpu"]
    given += ["--save-steps", "4", "--per-device-train-batch-size", "4", *options]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*COMMAND, *given, "--output-dir", str(whole)], check=True, capture_output=True, timeout=300)
    stopped = subprocess.Popen([*COMMAND, *given, "--output-dir", str(killed)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(lines_of(killed)) < 10:
        assert stopped.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(stopped.pid, signal.SIGKILL)
    stopped.wait()
    assert 10 <= len(lines_of(killed)) < 30
    done = subprocess.run(
        [*COMMAND, *given, "--output-dir", str(killed), "--resume"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    before, after = ([json.loads(line) for line in lines_of(folder)] for folder in (whole, killed))
    assert [line["step"] for line in after] == list(range(1, 31))
    assert [line["loss"] for line in after] == [line["loss"] for line in before]
    assert [line["tokens"] for line in after] == [line["tokens"] for line in before]
    file = "model/model.safetensors" if "full" in options else "adapter/adapter_model.safetensors"
    first, second = load_file(whole / file), load_file(killed / file)
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("limit", [60_000, 100_000], ids=["adapter", "checkpoint"])
def test_no_room_is_said_in_one_line_and_what_was_there_stays(limit, llama, sums, tmp_path):
    """A limit on file sizes stands in for a full disk: the system refuses to write in the middle of a file."""
    import resource

    method = (
        ["--method", "full", "--layers", "all"] if limit == 100_000 else ["--lora-r", "16", "--target-modules", "all"]
    )
    given = [str(llama), "--data", str(sums), "--output-dir", str(tmp_path / "run"), "--device", "cpu", *method]
    done = subprocess.run(
        [*COMMAND, *given, "--max-steps", "6", "--save-steps", "4"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    said = [line for line in done.stderr.splitlines() if line.startswith("midblock: ")]
    assert len(said) == 1
    assert "cannot write" in said[0]
    assert len(lines_of(tmp_path / "run")) >= 4
    assert not (tmp_path / "run" / "adapter").exists()
