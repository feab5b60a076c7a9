import pytest
import torch
from peft import LoraConfig, get_peft_model

from midblock.base import MidblockError
from midblock.base.files import read_size, size_text
from midblock.checkpoints import LoadSettings, load_model, open_checkpoint
from midblock.checkpoints.anatomy import Anatomy
from midblock.checkpoints.footprint import Footprint, available_memory, dtype_in_memory, own_dtype

from ..conftest import FAMILIES, WRAPPERS


def held(module):
    return sum(value.nbytes for value in (*module.parameters(), *module.buffers()))


def loaded(folder, dtype="float32"):
    return load_model(open_checkpoint(str(folder)), LoadSettings(device="cpu", dtype=dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_part_is_the_loaded_models_to_the_byte(family, dtype, pico, saved):
    folder = saved(pico(family), "model")
    found, model = Footprint.of(open_checkpoint(str(folder)), getattr(torch, dtype)), loaded(folder, dtype)
    anatomy = Anatomy.of(model)
    assert found.total == held(model)
    assert found.blocks == tuple(map(held, anatomy.blocks))
    assert found.norm == held(anatomy.final_norm)
    assert found.tied is (anatomy.head.weight is anatomy.embedding.weight)
    assert found.head == (0 if found.tied else held(anatomy.head))
    assert found.embedding >= held(anatomy.embedding)
    assert found.merging == 0


@pytest.mark.parametrize("kind", WRAPPERS)
def test_towers_count_as_they_are_loaded_and_lie_outside_the_blocks(kind, wrapped, saved):
    folder = saved(wrapped(kind)[0], "model")
    found, model = Footprint.of(open_checkpoint(str(folder)), torch.bfloat16), loaded(folder, "bfloat16")
    assert found.total == held(model)
    assert found.blocks == tuple(map(held, Anatomy.of(model).blocks))
    assert found.other > 0


def test_weights_that_transformers_keeps_in_float32(saved, pico, monkeypatch):
    monkeypatch.setitem(FAMILIES, "glm4_moe", GLM4_MOE)
    folder = saved(pico("glm4_moe"), "model")
    found, model = Footprint.of(open_checkpoint(str(folder)), torch.bfloat16), loaded(folder, "bfloat16")
    kinds = {name: value.dtype for name, value in model.state_dict().items()}
    assert {kinds[name] for name in kinds if name.endswith("e_score_correction_bias")} == {torch.float32}
    assert found.total == held(model)


GLM4_MOE = (
    "Glm4MoeConfig",
    {**FAMILIES["qwen3_moe"][1], "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
)


@pytest.mark.parametrize(("targets", "parted"), [(["q_proj"], False), (["lm_head"], True)])
def test_an_adapter_that_parts_a_tied_head_makes_it_larger(targets, parted, pico, saved, tmp_path):
    base = pico("llama_tied")
    base.name_or_path = str(saved(base, "base"))
    plain = Footprint.of(open_checkpoint(base.name_or_path), torch.float32)
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    found = Footprint.of(open_checkpoint(str(tmp_path / "adapter")), torch.float32)
    assert found.total == held(loaded(tmp_path / "adapter"))
    assert (found.tied, found.head) == ((False, plain.embedding) if parted else (True, 0))
    assert found.merging > 0
    assert plain.loading == plain.total + plain.largest


def test_the_type_that_a_model_is_loaded_in(pico, saved):
    checkpoint = open_checkpoint(str(saved(pico("llama").to(torch.bfloat16), "model")))
    assert own_dtype(checkpoint) == torch.bfloat16
    assert dtype_in_memory(checkpoint, LoadSettings(device="cpu")) == torch.float32
    assert dtype_in_memory(checkpoint, LoadSettings(device="cpu", dtype="float16")) == torch.float16
    whole, half = (Footprint.of(checkpoint, kind).total for kind in (torch.float32, None))
    assert 1.9 < whole / half <= 2


def test_memory_is_what_the_tightest_control_group_leaves(tmp_path):
    free = available_memory("cpu", system=tmp_path)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("4:memory:/job/step\n0::/pod\n")
    write_group(tmp_path / "sys/fs/cgroup/memory/job/step", "memory.limit_in_bytes", "memory.usage_in_bytes", 2**63 - 1)
    write_group(tmp_path / "sys/fs/cgroup/memory/job", "memory.limit_in_bytes", "memory.usage_in_bytes", 5_000_000)
    assert available_memory("cpu", system=tmp_path) == 5_000_000 - 1_000_000 + 300_000 < free
    write_group(tmp_path / "sys/fs/cgroup/pod", "memory.max", "memory.current", 2_000_000)
    assert available_memory("cpu", system=tmp_path) == 2_000_000 - 1_000_000 + 300_000
    (tmp_path / "sys/fs/cgroup/pod/memory.max").write_text("max\n")
    assert available_memory("cpu", system=tmp_path) == 4_300_000


def write_group(folder, limit, used, most):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit).write_text(f"{most}\n")
    (folder / used).write_text("1000000\n")
    (folder / "memory.stat").write_text("cache 5\ninactive_file 300000\n")


SIZES = {"4GB": 4 * 10**9, "3.5 GiB": 7 * 2**29, "500mb": 5 * 10**8, "64 KiB": 2**16, "2T": 2 * 10**12, "12": 12}


@pytest.mark.parametrize("text", SIZES)
def test_sizes_in_words(text):
    assert read_size(text) == SIZES[text]


@pytest.mark.parametrize("count", [2**20, 3 * 2**19, 5 * 2**29, 300 * 2**30])
def test_a_size_that_was_written_is_read_back(count):
    assert read_size(size_text(count)) == count


@pytest.mark.parametrize("text", ["", "GB", "-4GB", "0", "0.0GB", "4 XB", "4ib", "4GB4", "1e9", "9" * 20 + "TB", "٤GB"])
def test_what_is_no_size(text):
    with pytest.raises(MidblockError, match=r"cannot read the size .*such as 4GB"):
        read_size(text)
