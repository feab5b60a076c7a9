"""A checkpoint is believed only as it was written: any damage is one line that names the file."""

import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch

from midblock.base import MidblockError
from midblock.tuning import tune
from midblock.tuning.loop.resume import UNSEALED, Waypoint, check_whole, last_checkpoint
from midblock.tuning.loop.seal import SEAL, read_seal, seal

OPTIONS = {"max_steps": 5, "save_steps": 2, "lr_scheduler_type": "constant"}
FILES = (
    "adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth",
    "trainer_state.json", "training_args.bin", SEAL,
)  # fmt: skip


def flip(file, at=0.5):
    content = bytearray(file.read_bytes())
    content[int(len(content) * at)] ^= 1
    file.write_bytes(bytes(content))


@pytest.fixture(scope="module")
def halted(tmp_path_factory, llama, sums, interrupted):
    """A run that was stopped in its last step, with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("halted") / "run"
    with pytest.raises(KeyboardInterrupt):
        tune(
            str(llama), str(sums), "010", learning_rate=3e-3, device="cpu", output_dir=folder,
            progress=interrupted("tuning", at=5), **OPTIONS,
        )  # fmt: skip
    return folder


@pytest.fixture
def stopped(halted, tuned, tmp_path):
    """A copy of it to damage, and how to go on."""
    shutil.copytree(halted, tmp_path / "run")
    return tmp_path / "run" / "checkpoints", lambda: tuned(**OPTIONS, resume=True)


def said(act):
    with pytest.raises(MidblockError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_file_is_sealed_and_whole_ones_are_believed(stopped):
    folder, _ = stopped
    assert last_checkpoint(folder) == (folder / "checkpoint-4", 4)
    assert set(FILES) - {SEAL} <= set(read_seal(folder / "checkpoint-4")["files"])
    Waypoint.last(folder).check(5)


@pytest.mark.parametrize("file", FILES)
def test_one_flipped_bit_is_named(stopped, file):
    folder, _ = stopped
    damaged = folder / "checkpoint-4" / file
    whole = damaged.read_bytes()
    for at in (0, 0.3, 0.7, 0.999):
        flip(damaged, at)
        message = said(lambda: Waypoint.last(folder).check(5))
        assert message.startswith(f"{damaged} is missing or broken (remove {damaged.parent}, and --resume goes on")
        damaged.write_bytes(whole)
    damaged.unlink()
    if file == SEAL:  # killed before it was sealed, as the older one, which is, tells
        assert last_checkpoint(folder) == (folder / "checkpoint-2", 2)
    else:
        assert str(damaged) in said(lambda: Waypoint.last(folder).check(5))


def test_the_whole_way_and_on_from_the_one_before(stopped):
    folder, go_on = stopped
    flip(folder / "checkpoint-4" / "adapter_model.safetensors")
    assert "adapter_model.safetensors is missing or broken" in said(go_on)
    shutil.rmtree(folder / "checkpoint-4")
    assert [line["step"] for line in go_on().log] == [1, 2, 3, 4, 5]


def test_a_file_put_in_later_is_not_read(stopped):
    folder, _ = stopped
    (folder / "checkpoint-4" / ".nfs0001").write_bytes(b"the file system's own")
    Waypoint.last(folder).check(5)
    (folder / "checkpoint-4" / "scaler.pt").write_bytes(b"x")
    assert "scaler.pt was put into the checkpoint after it was written" in said(lambda: Waypoint.last(folder).check(5))


def test_a_pipe_in_a_files_place_does_not_hang(stopped):
    folder, _ = stopped
    file = folder / "checkpoint-4" / "optimizer.pt"
    file.unlink()
    os.mkfifo(file)
    assert f"{file} is missing or broken" in said(lambda: Waypoint.last(folder).check(5))


def test_a_checkpoint_under_another_name(stopped):
    folder, _ = stopped
    (folder / "checkpoint-4").rename(folder / "checkpoint-5")
    assert "trainer_state.json is missing or broken" in said(lambda: Waypoint.last(folder).check(5))


def test_checkpoints_of_an_earlier_version_are_looked_over_roughly(stopped):
    folder, go_on = stopped
    for file in folder.glob(f"*/{SEAL}"):
        file.unlink()
    damaged = folder / "checkpoint-4" / "optimizer.pt"
    with zipfile.ZipFile(damaged) as archive:
        largest = archive.read(max(archive.infolist(), key=lambda each: each.file_size))
    flip(damaged, (damaged.read_bytes().index(largest) + len(largest) // 2) / damaged.stat().st_size)
    assert f"{damaged} is missing or broken" in said(go_on)
    shutil.rmtree(folder / "checkpoint-4")
    done = go_on()
    assert [line["step"] for line in done.log] == [1, 2, 3, 4, 5]
    assert UNSEALED in json.loads((done.folder / "run.json").read_text())["notes"]


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"])
def test_of_those_a_file_that_is_missing_or_cut_is_found(stopped, file):
    checkpoint = stopped[0] / "checkpoint-4"
    whole = (checkpoint / file).read_bytes()
    check_whole(checkpoint)
    for size in (0, 20, len(whole) // 2):
        (checkpoint / file).write_bytes(whole[:size])
        assert f"{checkpoint / file} is missing or broken" in said(lambda: check_whole(checkpoint))


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_strangers_pickle_is_one_line_and_does_not_run(stopped, tmp_path, file):
    """Whoever can write a folder can seal it, so nothing that is pickled in it may run."""
    folder, go_on = stopped

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it ran"),)

    torch.save(Bomb(), folder / "checkpoint-4" / file, pickle_module=pickle)
    seal(folder / "checkpoint-4", read_seal(folder / "checkpoint-4")["carried"])
    check_whole(folder / "checkpoint-4")
    assert "checkpoint-4 cannot be loaded: " in said(go_on)
    assert not (tmp_path / "it ran").exists()


def test_weights_of_another_run(stopped):
    folder, go_on = stopped
    torch.save({"state": {}, "param_groups": []}, folder / "checkpoint-4" / "optimizer.pt")
    seal(folder / "checkpoint-4", read_seal(folder / "checkpoint-4")["carried"])
    assert "checkpoint-4 cannot be loaded: " in said(go_on)
