import subprocess
import sys
from pathlib import Path

import pytest
import torch

from midblock.base import MidblockError
from midblock.tuning.anchor import factor_cache
from midblock.tuning.anchor.factor_cache import load_factors
from midblock.tuning.anchor.factors import factorize

HASH = "ab" * 32

RACE = """
import os, sys, time, torch
from pathlib import Path
from midblock.tuning.anchor import factor_cache
root, number = Path(sys.argv[1]), int(sys.argv[2])
real = factor_cache.factorize
weights = {f"w{i}": torch.randn(30, 20, generator=torch.Generator().manual_seed(i)) for i in range(5)}

def race(folder, share):
    os.environ["MIDBLOCK_CACHE"] = str(folder / "cache")
    folder.mkdir(exist_ok=True)
    def counted(weight, k, **options):
        with (folder / f"made{number}").open("a") as log:
            log.write(options["name"] + "\\n")
        time.sleep(0.3)
        return real(weight, k, **options)
    factor_cache.factorize = counted
    (folder / f"ready{number}").touch()
    while not (folder / f"ready{1 - number}").exists():
        time.sleep(0.01)
    found = factor_cache.load_factors(weights, "4", weight_hash="cd" * 32, seed=0, share=share)
    assert list(found) == list(weights)
    for name, factors in found.items():
        assert torch.equal(factors.U, real(weights[name], 4, seed=0).U)

race(root / "strangers", (0, 1))
meet = "file://" + str(root / "meet")
torch.distributed.init_process_group("gloo", init_method=meet, rank=number, world_size=2)
race(root / "together", (number, 2))
"""


@pytest.fixture(scope="module")
def raced(tmp_path_factory) -> Path:
    """A folder with what two processes made, first as strangers to each other, then together."""
    folder = tmp_path_factory.mktemp("raced")
    running = [subprocess.Popen([sys.executable, "-c", RACE, str(folder), number]) for number in ("0", "1")]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIDBLOCK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return {"q": torch.randn(20, 30), "experts": torch.randn(2, 12, 10), "embedding": torch.randn(50, 16)}


@pytest.fixture
def made(monkeypatch):
    """Names of the weights factorised so far."""
    names = []

    def counted(weight, k, **options):
        names.append(options["name"])
        return factorize(weight, k, **options)

    monkeypatch.setattr(factor_cache, "factorize", counted)
    return names


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_second_time_they_are_read(weights, made, dtype):
    first = load_factors(weights, "4", weight_hash=HASH, seed=0, dtype=dtype)
    assert made == ["q", "experts", "embedding"]
    again = load_factors(weights, "4", weight_hash=HASH, seed=0, dtype=dtype)
    assert len(made) == 3
    for name, factors in first.items():
        assert again[name].U.dtype == dtype
        for part in ("U", "core", "V"):
            assert torch.equal(getattr(again[name], part), getattr(factors, part))


@pytest.mark.parametrize(
    "change",
    [{"weight_hash": "ef" * 32}, {"k": "5"}, {"seed": 1}, {"dtype": torch.bfloat16}],
    ids=lambda change: next(iter(change)),
)
def test_anything_else_is_made_anew(weights, made, change):
    usual = {"k": "4", "weight_hash": HASH, "seed": 0}
    load_factors(weights, **usual)
    load_factors(weights, **{**usual, **change})
    assert len(made) == 6


def test_another_method_or_weight_dtype_is_made_anew(weights, made, monkeypatch):
    load_factors(weights, "4", weight_hash=HASH, seed=0)
    load_factors({name: weight.bfloat16() for name, weight in weights.items()}, "4", weight_hash=HASH, seed=0)
    monkeypatch.setattr(factor_cache, "METHOD", factor_cache.METHOD + 1)
    load_factors(weights, "4", weight_hash=HASH, seed=0)
    assert len(made) == 9


def test_without_a_hash_nothing_is_kept(weights, made, tmp_path):
    for _ in range(2):
        load_factors(weights, "0.5", weight_hash=None, seed=0)
    assert len(made) == 6
    assert files(tmp_path) == []


def spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    if how == "truncated":
        content = content[:-10]
    elif how == "empty":
        content = bytearray()
    elif how == "zeroed":
        content[header:] = bytes(len(content) - header)
    elif how == "not a number":
        content[header:] = b"\xff" * (len(content) - header)
    elif how == "flipped":  # the top of an exponent, somewhere in the middle
        content[header + (len(content) - header) // 8 * 4 + 3] ^= 0x40
    elif how == "lowest bit":  # which no product of matrices would show
        content[-9] ^= 1
    elif how == "another digest":
        content[8 + content[8:].index(b"checksum") + 20] ^= 1
    elif how == "nonsense":
        content[8:20] = b"{" * 12
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "how", ["truncated", "empty", "zeroed", "not a number", "flipped", "lowest bit", "another digest", "nonsense"]
)
def test_a_broken_file_is_made_again(weights, made, tmp_path, how):
    good = load_factors(weights, "4", weight_hash=HASH, seed=0)
    spoiled = files(tmp_path)
    for path in spoiled:
        spoil(path, how)
    again = load_factors(weights, "4", weight_hash=HASH, seed=0)
    assert len(made) == 6
    assert all(torch.equal(again[name].U, good[name].U) for name in weights)
    load_factors(weights, "4", weight_hash=HASH, seed=0)
    assert len(made) == 6
    assert files(tmp_path) == spoiled


def test_factors_of_another_weight_are_not_believed(weights, made):
    load_factors(weights, "4", weight_hash=HASH, seed=0)
    moved = {name: weight.flip(-1) for name, weight in weights.items()}
    found = load_factors(moved, "4", weight_hash=HASH, seed=0)
    assert len(made) == 6
    assert torch.equal(found["q"].U, factorize(moved["q"], 4, seed=0).U)


def test_nothing_temporary_is_left(weights, tmp_path):
    load_factors(weights, "4", weight_hash=HASH, seed=0)
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert sorted(left) == files(tmp_path)


def test_an_unwritable_cache(weights, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MIDBLOCK_CACHE", str(tmp_path / "file"))
    with pytest.raises(MidblockError, match="MIDBLOCK_CACHE"):
        load_factors(weights, "4", weight_hash=HASH, seed=0)


def test_progress_counts_every_weight(weights):
    class Count:
        def phase(self, title, total):
            self.total, self.done = total, 0.0

            def advance(amount):
                self.done += amount

            return advance

    count = Count()
    load_factors(weights, "4", weight_hash=HASH, seed=0, progress=count)
    assert count.done == count.total == 3


@pytest.mark.parametrize("kind", ["strangers", "together"])
def test_two_processes_make_each_once(raced, kind):
    logs = [raced / kind / f"made{number}" for number in range(2)]
    made = [log.read_text().split() if log.exists() else [] for log in logs]
    assert sorted(made[0] + made[1]) == [f"w{i}" for i in range(5)]
    if kind == "together":
        assert made == [["w0", "w2", "w4"], ["w1", "w3"]]
