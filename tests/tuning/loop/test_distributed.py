"""Real runs of two processes on this machine (gloo) end with one process's losses and a whole result."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from midblock import carve, flow, tune
from midblock.base import LayerTable

KINDS = {"ddp": {}, "shard": {"shard": True}}
RPSFT = {"anchor": "rpsft", "anchor_k": "8", "anchor_lambda": 0.1}
HOLDS = {"plain": {}, "block": RPSFT, "subspace": {**RPSFT, "anchor_scope": "subspace"}}
OTHERS = {"kl": {"loss": "kl"}, "cached": {"layers": "001", "max_steps": 8, "num_samples": 16, "prefix_cache": "on"}}
METHODS = {"lora": {"method": "lora"}, "full": {"method": "full", "learning_rate": 1e-3}}
CARVED = {
    "num_samples": 24, "max_steps": 4, "mask_warmup_steps": 1, "test_samples": 4, "max_new_tokens": 2,
    "random_draws": 1, "rivals": False, "ability": "none", "device": "cpu",
}  # fmt: skip
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def runs(llama, sums, tmp_path_factory) -> Path:
    """A folder with every run: `one-METHOD-HOLD` in this process, `KIND-METHOD-HOLD` in two of their own."""
    folder = tmp_path_factory.mktemp("runs")
    common = {"base": str(llama), "data": str(sums), "layers": "010", "max_steps": 4, "learning_rate": 3e-3}
    common["device"] = "cpu"
    planned = []
    for method, how in METHODS.items():
        for hold, held in {**HOLDS, **OTHERS}.items():
            options = {**common, **how, **held}
            if method == "full" and hold == "kl":
                options["reference"] = str(llama)
            alone = {**options, "per_device_train_batch_size": 8, "output_dir": str(folder / f"one-{method}-{hold}")}
            tune(alone.pop("base"), alone.pop("data"), alone.pop("layers"), **alone)
            split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
            planned += [
                {**options, **split, **extra, "output_dir": str(folder / f"{kind}-{method}-{hold}")}
                for kind, extra in KINDS.items()
            ]
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    for method, how in METHODS.items():
        name = folder / f"stopped-{method}-plain"
        planned.append({**common, **how, **split, "save_steps": 3, "output_dir": str(name), "stopped": 2})
    given = {**common, "max_steps": 3, "lr_scheduler_type": "constant", "method": "full"}
    flow(
        given.pop("base"), given.pop("data"), given.pop("layers"), **given,
        per_device_train_batch_size=8, output_dir=folder / "one" / "first",
    )  # fmt: skip
    for stopped in (None, 2):
        name = folder / f"two-{stopped}" / "first"
        planned.append({**common, **given, **split, "verb": "flow", "output_dir": str(name), "stopped": stopped})
    carved = {**CARVED, "base": str(llama), "tuned": str(folder / "one-full-plain"), "data": f"fixed_response:{sums}"}
    given = [carved.pop(name) for name in ("base", "tuned", "data")]
    carve(*given, **carved, per_device_train_batch_size=8, output_dir=folder / "one-carved")
    named = dict(zip(("base", "tuned", "data"), given, strict=True))
    planned.append({**carved, **split, **named, "verb": "carve", "output_dir": str(folder / "two-carved")})
    (folder / "plan.json").write_text(json.dumps(planned))
    script = Path(__file__).with_name("two_processes.py")
    done = subprocess.run(
        [*LAUNCH, str(script), str(folder / "plan.json")], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(iter([*folder.glob("adapter/*.safetensors"), *folder.glob("model/*.safetensors")])))


@pytest.mark.parametrize("hold", [*HOLDS, *OTHERS])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(kind, method, hold, runs):
    alone, together = runs / f"one-{method}-{hold}", runs / f"{kind}-{method}-{hold}"
    one, two = log_of(alone), log_of(together)
    assert [line["step"] for line in two] == list(range(1, len(one) + 1))
    for key in ("loss", "nll", "grad_norm", "tokens"):
        assert [line[key] for line in two] == pytest.approx([line[key] for line in one], rel=1e-4)
    if hold in ("block", "subspace"):
        penalties = [[line["penalty"] for line in lines] for lines in (one, two)]
        assert penalties[1] == pytest.approx(penalties[0], rel=1e-2, abs=1e-9)
    before, after = weights_of(alone), weights_of(together)
    assert after.keys() == before.keys()
    for name, value in before.items():
        # Adam's first steps are ± the learning rate, whatever the gradient: a near-zero one may turn its sign
        assert (after[name] - value).abs().mean() < 1e-4, name
    assert json.loads((together / "summary.json").read_text())["untouched"]["changed"] == 0


@pytest.mark.parametrize("method", METHODS)
def test_one_process_that_is_asked_stops_both_and_they_go_on_to_the_same_numbers(method, runs):
    whole, stopped = runs / f"ddp-{method}-plain", runs / f"stopped-{method}-plain"
    one, two = log_of(whole), log_of(stopped)
    assert [{**line, "seconds": 0} for line in two] == [{**line, "seconds": 0} for line in one]
    before, after = weights_of(whole), weights_of(stopped)
    assert all(before[name].equal(after[name]) for name in before)


@pytest.mark.parametrize("stopped", [None, 2])
def test_a_flow_of_two_processes_sees_the_gradients_of_one(stopped, runs):
    """Its steps are few, so one that was stopped takes them all anew."""
    one, two = (LayerTable.read(runs / name / "first").frame for name in ("one", f"two-{stopped}"))
    assert two.drop(columns=["value", "low", "high"]).equals(one.drop(columns=["value", "low", "high"]))
    gradients = one.metric.str.startswith("gradient")
    assert len(two[gradients]) > 0
    assert two[gradients].value.tolist() == pytest.approx(one[gradients].value.tolist(), rel=1e-3)
    moved = one.metric == "delta_rel"
    assert two[moved].value.tolist() == pytest.approx(one[moved].value.tolist(), rel=1e-2)
    assert len(log_of(runs / f"two-{stopped}" / "first")) == 3


def test_a_user_error_under_torchrun_ends_all_processes_with_one_line(llama, sums, tmp_path):
    arguments = ["-m", "midblock", "tune", str(llama), "--data", str(sums), "--output-dir", str(tmp_path / "x")]
    done = subprocess.run(
        [*LAUNCH, *arguments, "--layers", "7-9", "--device", "cpu"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0
    said = {line for line in done.stderr.splitlines() if line.startswith("midblock: ")}
    assert said == {"midblock: the layer plan '7-9' names block 7; the model has 0 to 2"}
    assert not (tmp_path / "x").exists()


def test_two_processes_carve_as_one(runs):
    one, two = runs / "one-carved", runs / "two-carved"
    for alone, together in zip(log_of(one), log_of(two), strict=True):
        for key in ("loss", "grad_norm", "tokens", "lambda", "masks_on"):
            assert together[key] == pytest.approx(alone[key], rel=1e-4)
    ours, theirs = (load_file(folder / "carrier" / "carrier.safetensors") for folder in (one, two))
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5)
    assert (two / "necessity.parquet").exists()
