import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from midblock.base import MidblockError
from midblock.checkpoints.tensors import TensorReader, content_hash, same_bits


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=100
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def single(model, tmp_path):
    model.save_pretrained(tmp_path / "single")
    return tmp_path / "single"


@pytest.fixture
def sharded(model, tmp_path):
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    return tmp_path / "sharded"


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_reads_what_was_saved(kind, model, request):
    expected = model.state_dict()
    with TensorReader.open(request.getfixturevalue(kind)) as reader:
        assert set(reader) == set(expected)
        assert len(reader) == len(expected)
        for name, tensor in reader.items():
            assert torch.equal(tensor, expected[name])
            assert reader.shape(name) == tuple(tensor.shape)
            assert reader.dtype(name) == tensor.dtype
            assert reader.nbytes(name) == tensor.nbytes
            assert reader.file(name).parent == request.getfixturevalue(kind)


def test_every_dtype_and_odd_shapes(tmp_path):
    tensors = {
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(7).bfloat16(),
        "double": torch.randn(2, 2, 2).double(),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "flags": torch.tensor([True, False, True]),
        "small": torch.randn(3).to(torch.float8_e4m3fn),
        "ids": torch.arange(3),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    with TensorReader.open(tmp_path / "x.safetensors") as reader:
        for name, tensor in tensors.items():
            found = reader.read(name)
            assert found.dtype == tensor.dtype
            assert found.shape == tensor.shape
            assert torch.equal(found.view(-1).float(), tensor.view(-1).float())
    content_hash(TensorReader.open(tmp_path / "x.safetensors"))


def test_unaligned_tensors(tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * ((1 - len(header)) % 4)
    data = torch.tensor([1.0, 2.0])
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data.numpy().tobytes())
    assert torch.equal(TensorReader.open(tmp_path / "x.safetensors").read("x"), data)


def test_order_is_the_files(sharded):
    with TensorReader.open(sharded) as reader:
        expected = []
        for file in sorted(sharded.glob("*.safetensors")):
            with safe_open(file, "pt") as other:
                expected += other.offset_keys()
        assert list(reader.names) == expected


def test_views_outlive_the_reader_and_later_reads(single):
    expected = load_file(single / "model.safetensors")
    reader = TensorReader.open(single)
    views = {name: reader.read(name) for name in reader}
    reader.close()
    assert all(torch.equal(views[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match="closed"):
        reader.read(next(iter(expected)))


def test_a_write_never_reaches_the_file(single):
    before = (single / "model.safetensors").read_bytes()
    with TensorReader.open(single) as reader:
        reader.read(reader.names[0]).zero_()
    assert (single / "model.safetensors").read_bytes() == before


def test_unknown_tensor(single):
    with TensorReader.open(single) as reader, pytest.raises(MidblockError, match=r"did you mean 'model.norm.weight'"):
        reader.read("model.nrm.weight")


MEMORY = """
import resource, sys
from midblock.checkpoints.tensors import TensorReader
with TensorReader.open(sys.argv[1]) as reader:
    reader.read(reader.names[0]).sum()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, tensor in reader.items():
        tensor.sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units there")
def test_memory_stays_at_a_few_tensors(tmp_path):
    save_file({str(i): torch.ones(1 << 21) for i in range(16)}, tmp_path / "x.safetensors")  # 16 of 8 MB
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "x.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3 * 8 * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_file_stays_open_once_mapped(sharded):
    before = len(os.listdir("/proc/self/fd"))
    readers = [TensorReader.open(sharded) for _ in range(5)]
    # Python's mmap duplicates the descriptor: one a file, however many tensors are read
    files = len(list(sharded.glob("*.safetensors")))
    for reader in readers:
        for name in reader:
            reader.read(name)
    assert len(os.listdir("/proc/self/fd")) <= before + 5 * files
    for reader in readers:
        reader.close()
    del readers, reader
    assert len(os.listdir("/proc/self/fd")) == before


def test_hash_ignores_sharding_and_sees_every_byte(single, sharded, model, tmp_path):
    with TensorReader.open(single) as one, TensorReader.open(sharded) as many:
        assert content_hash(one) == content_hash(many)
        before = content_hash(one)
    state = load_file(single / "model.safetensors")
    state["model.norm.weight"][3] += 1e-6
    save_file(state, tmp_path / "changed.safetensors")
    assert content_hash(TensorReader.open(tmp_path / "changed.safetensors")) != before
    state = load_file(single / "model.safetensors")
    state["other.name"] = state.pop("model.norm.weight")
    save_file(state, tmp_path / "renamed.safetensors")
    assert content_hash(TensorReader.open(tmp_path / "renamed.safetensors")) != before


def cut(file, keep):
    file.write_bytes(file.read_bytes()[:keep])


def test_missing_shard(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(MidblockError, match=f"{shard.name}' is missing"):
        TensorReader.open(sharded)


@pytest.mark.parametrize("keep", [-1, -4000, 100, 8])
def test_truncated_shard(sharded, keep):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    cut(shard, keep)
    with pytest.raises(MidblockError, match=f"{shard.name} is truncated"):
        TensorReader.open(sharded)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read"),
        (b"abc", "corrupt"),
        (b"\xff" * 100, "corrupt: its header would be"),
        ((5).to_bytes(8, "little") + b"{bad}", "not readable JSON"),
        ((2).to_bytes(8, "little") + b"[]", "holds no JSON object"),
        ((2).to_bytes(8, "little") + b"{}tail", "bytes follow"),
        ((9).to_bytes(8, "little") + b'{"x":{}} ', "corrupt: its header does not say"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs pointer"),
    ],
)
def test_corrupt_header(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(MidblockError, match=message) as caught:
        TensorReader.open(tmp_path)
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, r"tensor 'x' of shape \[3\] has 8 bytes"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}, "corrupt"),
        ({"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}, "does not say type, shape and place"),
        ({"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}, "does not say"),
        ({"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}, "does not say"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 16]}, "does not say"),
        ({"dtype": "F32", "shape": [2**70, 0], "data_offsets": [0, 8]}, "does not say"),
        ({"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}, "does not say"),
        ([], "does not say"),
        ({"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}, "does not say"),
        ({"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}, "tensor 'x' has the type 'F4'"),
    ],
)
def test_corrupt_entry(tmp_path, entry, message):
    header = json.dumps({"x": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(MidblockError, match=message):
        TensorReader.open(tmp_path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"x": [4, 8]}, "'x' does not begin where the one before it ends"),
        ({"x": [0, 4], "y": [0, 8]}, "'y' does not begin"),
        ({"x": [0, 4], "y": [0, 4], "z": [4, 8]}, "'y' does not begin"),
        ({"x": [0, 8], "__metadata__": {"format": 7}}, "metadata is no table of words"),
        ({"x": [0, 8], "__metadata__": [1]}, "metadata is no table of words"),
    ],
)
def test_bytes_of_no_tensor_or_of_two(tmp_path, header, message):
    entries = {
        name: {"dtype": "U8", "shape": [at[1] - at[0]], "data_offsets": at} if name != "__metadata__" else at
        for name, at in header.items()
    }
    content = json.dumps(entries).encode()
    (tmp_path / "model.safetensors").write_bytes(len(content).to_bytes(8, "little") + content + bytes(8))
    with pytest.raises(MidblockError, match=message):
        TensorReader.open(tmp_path)
    with pytest.raises(SafetensorError):  # as its own library does
        safe_open(tmp_path / "model.safetensors", "pt")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(MidblockError, match="it is a pipe, no file"):
        TensorReader.open(tmp_path)


def test_index_and_shard_disagree(sharded):
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    shard = index["weight_map"]["model.norm.weight"]
    index["weight_map"]["model.ghost.weight"] = shard
    file.write_text(json.dumps(index))
    with pytest.raises(MidblockError, match=rf"{shard} lacks the tensor model\.ghost\.weight"):
        TensorReader.open(sharded)


NO_MAPS = ["{", "[]", '{"weight_map": 3}', "{}", '{"weight_map": {"x": 7}}', '{"weight_map": {"x": {"y": "z"}}}']


@pytest.mark.parametrize("content", NO_MAPS)
def test_broken_index(sharded, content):
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(MidblockError, match=r"index\.json (is corrupt|is not readable|holds no JSON object)"):
        TensorReader.open(sharded)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "..", "", "a/b.safetensors"])
def test_index_may_not_leave_its_folder(sharded, shard):
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(MidblockError, match=r"outside its folder|is missing|cannot read"):
        TensorReader.open(sharded)


@pytest.mark.parametrize("shard", ["x" * 300, "a\0b", "gone.safetensors"])
def test_index_names_what_no_folder_has(sharded, shard):
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(MidblockError, match=r"shard .* is missing") as caught:
        TensorReader.open(sharded)
    assert len(str(caught.value)) < 500


def test_shards_without_index(sharded):
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(MidblockError, match=r"no model\.safetensors\.index\.json"):
        TensorReader.open(sharded)


def test_nothing_there(tmp_path):
    (tmp_path / "training_args.bin").touch()
    with pytest.raises(MidblockError, match="no weights in"):
        TensorReader.open(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_need_consent(model, tmp_path, name, zipped):
    torch.save(model.state_dict(), tmp_path / name, _use_new_zipfile_serialization=zipped)
    with pytest.raises(MidblockError, match=r"pickled weights.*allow-pickle"):
        TensorReader.open(tmp_path)
    with TensorReader.open(tmp_path, allow_pickle=True) as reader:
        for key, tensor in model.state_dict().items():
            assert torch.equal(reader.read(key), tensor)
            assert reader.shape(key) == tuple(tensor.shape)


def test_sharded_pickles(model, tmp_path):
    state = model.state_dict()
    names = list(state)
    parts = {"pytorch_model-1.bin": names[:5], "pytorch_model-2.bin": names[5:]}
    for file, part in parts.items():
        torch.save({name: state[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(MidblockError, match="pickled"):
        TensorReader.open(tmp_path)
    with TensorReader.open(tmp_path, allow_pickle=True) as reader:
        assert set(reader) == set(names)


class Hostile:
    def __reduce__(self):
        return (print, ("executed",))


def test_hostile_pickle_runs_nothing(tmp_path, capfd):
    torch.save({"x": Hostile()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(MidblockError, match="wants to run code"):
        TensorReader.open(tmp_path, allow_pickle=True)
    assert "executed" not in capfd.readouterr().out


def test_broken_pickles(tmp_path, model):
    file = tmp_path / "pytorch_model.bin"
    torch.save(model.state_dict(), file)
    cut(file, -2000)
    with pytest.raises(MidblockError):
        TensorReader.open(tmp_path, allow_pickle=True)
    torch.save([1, 2], file)
    with pytest.raises(MidblockError, match="no state dict"):
        TensorReader.open(tmp_path, allow_pickle=True)


def stale(folder, change):
    """Another shard of the folder gets its own copy of a tensor."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.0.self_attn.q_proj.weight"
    home, other = index[name], next(shard for shard in sorted(set(index.values())) if shard != index[name])
    copied = change(load_file(folder / home)[name])
    save_file({**load_file(folder / other), name: copied}, folder / other, metadata={"format": "pt"})
    return name, home, other


def test_a_stale_copy_in_another_shard_is_named(sharded):
    name, home, other = stale(sharded, lambda value: value + 1)
    with pytest.raises(MidblockError, match=rf"{name} lies in .*{home} and, with other values, in .*{other}"):
        TensorReader.open(sharded)


@pytest.mark.parametrize("same", [torch.clone, torch.Tensor.double])
def test_an_equal_copy_in_another_shard_is_no_matter(sharded, model, same):
    name, home, _ = stale(sharded, same)
    with TensorReader.open(sharded) as reader:
        assert reader.file(name).name == home
        assert torch.equal(reader.read(name), model.state_dict()[name])


def test_bits_are_compared():
    odd = torch.tensor([float("nan"), 0.0])
    assert same_bits(odd, odd.clone())
    assert not same_bits(odd, torch.tensor([float("nan"), -0.0]))
    assert not same_bits(odd, odd[:1])
    assert same_bits(torch.tensor([0.5]), torch.tensor([0.5]).half())
