import pytest
import torch
from safetensors.torch import load_file

from midblock.base import MidblockError
from midblock.checkpoints.tensor_writer import FileLayout, write_tensors


def test_written_tensors_are_what_safetensors_reads(tmp_path):
    torch.manual_seed(0)
    given = {
        "bits": torch.tensor([True, False, True]),
        "half": torch.randn(3, 5).half(),
        "empty": torch.zeros(0, 4),
        "one": torch.tensor(2.5, dtype=torch.float64),
        "turned": torch.randn(4, 6).T,
        "brain": torch.randn(7).bfloat16(),
    }
    entries = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in given.items()}
    size = write_tensors(tmp_path / "t.safetensors", entries, given.__getitem__)
    found = load_file(tmp_path / "t.safetensors")
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) and found[name].dtype == given[name].dtype for name in given)
    assert size == sum(tensor.nbytes for tensor in given.values())
    entries["half"] = (torch.float16, (5, 3))
    with pytest.raises(ValueError, match="half is"):
        write_tensors(tmp_path / "t.safetensors", entries, given.__getitem__)


def test_a_layout_says_where_each_tensor_lies(tmp_path):
    given = {"narrow": torch.randn(3).half(), "wide": torch.randn(2, 2)}
    entries = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in given.items()}
    layout = FileLayout.of(entries)
    write_tensors(tmp_path / "t.safetensors", entries, given.__getitem__)
    content = (tmp_path / "t.safetensors").read_bytes()
    assert content.startswith(layout.header)
    assert list(layout.starts) == ["wide", "narrow"]
    assert len(content) == len(layout.header) + layout.size
    for name, tensor in given.items():
        assert content[layout.starts[name] :].startswith(tensor.numpy().tobytes())


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(MidblockError, match="cannot write"):
        write_tensors(tmp_path / "nowhere" / "t.safetensors", {}, {}.__getitem__)
