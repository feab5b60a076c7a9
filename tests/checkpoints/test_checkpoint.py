import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from midblock.base import MidblockError
from midblock.checkpoints.checkpoint import open_checkpoint
from midblock.checkpoints.tensors import TensorReader, content_hash


def save_tokenizer(folder, words):
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=words[0]).save_pretrained(folder)


def pico():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=100
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def folder(tmp_path):
    pico().save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model", ["<unk>", "a", "b"])
    return tmp_path / "model"


@pytest.fixture
def adapter(folder, tmp_path):
    model = pico()
    model.name_or_path = str(folder)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_folder(folder):
    checkpoint = open_checkpoint(str(folder))
    assert (checkpoint.name, checkpoint.folder, checkpoint.adapter) == ("model", folder, None)
    assert checkpoint.config.num_hidden_layers == 2
    assert checkpoint.tokenizer()("a b")["input_ids"] == [1, 2]
    assert not checkpoint.pickled
    with checkpoint.tensors() as tensors:
        assert "model.norm.weight" in tensors
        assert checkpoint.weight_hash() == content_hash(tensors)


def test_adapter(adapter, folder):
    checkpoint = open_checkpoint(str(adapter))
    assert (checkpoint.name, checkpoint.folder) == ("adapter", folder)
    assert checkpoint.adapter is not None
    assert checkpoint.config.vocab_size == 100
    assert checkpoint.tokenizer()("a b")["input_ids"] == [1, 2]
    save_tokenizer(adapter, ["<unk>", "b", "a"])
    assert checkpoint.tokenizer()("a b")["input_ids"] == [2, 1]
    with checkpoint.tensors() as tensors:
        assert len(list(checkpoint.adapter.deltas(tensors))) == 2


def test_adapter_hash_sees_base_factors_and_scale(adapter, folder, tmp_path):
    hashes = {open_checkpoint(str(folder)).weight_hash(), open_checkpoint(str(adapter)).weight_hash()}
    edit(adapter / "adapter_config.json", lora_alpha=3)
    hashes.add(open_checkpoint(str(adapter)).weight_hash())
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file)
    hashes.add(open_checkpoint(str(adapter)).weight_hash())
    file = folder / "model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    hashes.add(open_checkpoint(str(adapter)).weight_hash())
    assert len(hashes) == 5


def test_base_given(adapter, folder, tmp_path):
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(MidblockError, match="--base"):
        open_checkpoint(str(adapter))
    assert open_checkpoint(str(adapter), base=str(moved)).folder == moved
    with pytest.raises(MidblockError, match="is no adapter"):
        open_checkpoint(str(moved), base=str(moved))


def test_no_config(tmp_path, folder):
    with pytest.raises(MidblockError, match=r"has no config.json.*did you mean .*model"):
        open_checkpoint(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MidblockError, match=r"empty is no model: it has no config\.json"):
        open_checkpoint(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable JSON"),
        ("[]", "holds no JSON object"),
        ("{}", "names no model_type"),
        ('{"model_type": "lama"}', "unknown model_type 'lama'.*did you mean"),
        ('{"model_type": "llama", "hidden_size": "x"}', "is not valid: .*hidden_size"),
        ('{"model_type": "mine", "auto_map": {"AutoConfig": "my.Config"}}', "own model code.*--trust-remote-code"),
    ],
)
def test_broken_config(folder, content, message):
    (folder / "config.json").write_text(content)
    with pytest.raises(MidblockError, match=message):
        open_checkpoint(str(folder))


REMOTE = """
from transformers import PretrainedConfig
class Config(PretrainedConfig):
    model_type = "mine"
"""


def test_remote_code_with_consent(folder, tmp_path, monkeypatch):
    (folder / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "my.Config"}}')
    (folder / "my.py").write_text(REMOTE)
    checkpoint = open_checkpoint(str(folder), trust_remote_code=True)
    assert checkpoint.config.model_type == "mine"


def test_a_known_type_never_runs_remote_code(folder):
    edit(folder / "config.json", auto_map={"AutoConfig": "my.Config"})
    (folder / "my.py").write_text("raise RuntimeError('ran')")
    assert open_checkpoint(str(folder)).config.model_type == "llama"


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(MidblockError, match="no weights in"):
        open_checkpoint(str(folder))


def test_pickles_need_consent(folder):
    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(MidblockError, match="pickled weights"):
        open_checkpoint(str(folder))
    checkpoint = open_checkpoint(str(folder), allow_pickle=True)
    assert checkpoint.pickled
    save_file(state, folder / "model.safetensors")
    with TensorReader.open(folder) as tensors:
        expected = content_hash(tensors)
    (folder / "model.safetensors").unlink()
    assert checkpoint.weight_hash() == expected


def test_tokenizer_missing_or_broken(folder):
    checkpoint = open_checkpoint(str(folder))
    for content in ('{"half": ', '{"version": "1.0", "model": {"type": "Novel"}}'):
        (folder / "tokenizer.json").write_text(content)
        with pytest.raises(MidblockError, match="cannot load the tokenizer in"):
            checkpoint.tokenizer()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(MidblockError, match="no tokenizer in"):
        checkpoint.tokenizer()


@pytest.mark.embedded
def test_embedded():
    checkpoint = open_checkpoint("builtin:smollm2-135m-instruct")
    assert checkpoint.name == "smollm2-135m-instruct"
    assert checkpoint.config.num_hidden_layers == 30
    assert checkpoint.tokenizer().chat_template
