"""A run that is killed at any moment goes on from its last checkpoint and ends with the same losses."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file


class Nursery:
    """One process that has imported everything, and forks another for each command."""

    def __init__(self, folder: Path) -> None:
        self.said = folder / "stderr"
        script = Path(__file__).with_name("nursery.py")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, *arguments: str, limit: int | None = None) -> int:
        """Begin `midblock tune`; return the process's number."""
        order = {"arguments": ["tune", *arguments], "stderr": str(self.said), "limit": limit}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """The exit code of the command that was begun last."""
        return int(self.process.stdout.readline())

    def kill_at(self, lines: int, folder: Path, *arguments: str) -> int:
        """Begin a run, kill it once its log has so many lines, and return the exit code."""
        number = self.start(*arguments, "--output-dir", str(folder))
        deadline = time.monotonic() + 120
        while len(lines_of(folder)) < lines:
            os.kill(number, 0)  # raises where it ended before it could be killed
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(number, signal.SIGKILL)
        return self.wait()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("nursery"))
    yield made
    made.process.stdin.close()
    made.process.wait(timeout=60)


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
def test_kill_and_resume(options, nursery, llama, sums, tmp_path):
    given = [str(llama), "--data", str(sums), "--max-steps", "30", "--learning-rate", "3e-3", "--device", "cpu"]
    given += ["--save-steps", "4", "--per-device-train-batch-size", "4", *options]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    nursery.start(*given, "--output-dir", str(whole))
    assert nursery.wait() == 0, nursery.said.read_text()
    assert nursery.kill_at(10, killed, *given) == -signal.SIGKILL
    assert 10 <= len(lines_of(killed)) < 30
    # behind the last step, while the checkpoint or the result is written
    assert nursery.kill_at(30, killed, *given, "--resume") == -signal.SIGKILL
    nursery.start(*given, "--output-dir", str(killed), "--resume")
    assert nursery.wait() == 0, nursery.said.read_text()
    before, after = ([json.loads(line) for line in lines_of(folder)] for folder in (whole, killed))
    assert [line["step"] for line in after] == list(range(1, 31))
    assert [line["loss"] for line in after] == [line["loss"] for line in before]
    assert [line["tokens"] for line in after] == [line["tokens"] for line in before]
    file = "model/model.safetensors" if "full" in options else "adapter/adapter_model.safetensors"
    first, second = load_file(whole / file), load_file(killed / file)
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("limit", [60_000, 100_000], ids=["adapter", "checkpoint"])
def test_no_room_is_said_in_one_line_and_what_was_there_stays(limit, nursery, llama, sums, tmp_path):
    """A limit on file sizes stands in for a full disk: the system refuses to write in the middle of a file."""
    method = (
        ["--method", "full", "--layers", "all"] if limit == 100_000 else ["--lora-r", "16", "--target-modules", "all"]
    )
    given = [str(llama), "--data", str(sums), "--output-dir", str(tmp_path / "run"), "--device", "cpu", *method]
    nursery.start(*given, "--max-steps", "6", "--save-steps", "4", limit=limit)
    code, stderr = nursery.wait(), nursery.said.read_text()
    assert code == 2, stderr[-2000:]
    said = [line for line in stderr.splitlines() if line.startswith("midblock: ")]
    assert len(said) == 1
    assert "cannot write" in said[0]
    assert len(lines_of(tmp_path / "run")) >= 4
    assert not (tmp_path / "run" / "adapter").exists()
