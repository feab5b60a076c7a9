import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

import midblock
from midblock.base import MidblockError
from midblock.checkpoints import load_pair, open_checkpoint
from midblock.checkpoints.footprint import Footprint
from midblock.cli.main import main
from midblock.studies.doctor.doctor import doctor
from midblock.studies.doctor.finding import CARE, STOPS

SMALL = {"num_samples": 8, "num_token_samples": 4, "device": "cpu"}


def said(found, level=STOPS):
    return [str(each) for each in found.findings if each.level == level]


def test_a_sound_pair_starts_and_fits(pair, data):
    found = doctor(*pair, data=data, **SMALL)
    forecast = found.forecast
    assert found.starts
    assert forecast.path == "whole models"
    sizes = tuple(Footprint.of(open_checkpoint(each), torch.float32).total for each in pair)
    assert forecast.demand.model_bytes == sizes
    assert forecast.demand.file_bytes == sum((Path(each) / "model.safetensors").stat().st_size for each in pair)
    assert (forecast.demand.prompts, forecast.demand.width, forecast.dtype) == (8, 32, "float32")
    assert forecast.speed.blocks == 2
    assert 0 < forecast.total.low < forecast.total.high
    assert set(forecast.others) == {"probe", "swap", "tune_step"}
    assert json.loads(json.dumps(found.as_record()))["starts"]


@pytest.mark.parametrize("cap", ["1MB", "4GB"])
def test_it_says_the_way_that_the_run_goes(cap, pair, data, tmp_path):
    found = doctor(*pair, data=data, max_memory=cap, **SMALL)
    opened = load_pair(*pair, device="cpu", max_memory=cap)
    run = lambda: midblock.analyze(opened, data, num_samples=8, num_token_samples=4, output_dir=tmp_path / "run")  # noqa: E731
    if cap == "4GB":
        run()
        engine = json.loads((tmp_path / "run" / "run.json").read_text())["engine"]
        assert (found.forecast.path, found.forecast.why) == (engine["kind"], engine["why"])
    else:
        with pytest.raises(MidblockError, match="block by block these models need"):
            run()
        (line,) = said(found)
        assert line.startswith("block by block these models need")


def test_a_base_alone_is_examined_too(pair, data):
    found = doctor(pair[0], data=data, **SMALL)
    assert found.starts
    assert "swap" not in found.forecast.others
    assert len(found.forecast.demand.model_bytes) == 1


def test_it_writes_nothing(pair, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    doctor(*pair, data=data, **SMALL)
    assert sorted(tmp_path.rglob("*")) == before


def stop_of(pair, data):
    """What the run itself stops with."""
    with pytest.raises(MidblockError) as caught:
        midblock.analyze(load_pair(*pair, device="cpu"), data, num_samples=8, num_token_samples=4)
    return str(caught.value)


def test_what_does_not_belong_together_stops_with_the_runs_own_words(pair, pico, saved, data):
    wider = saved(pico("llama", hidden_size=64), "wider")
    found = doctor(pair[0], wider, data=data, **SMALL)
    assert said(found) == [stop_of((pair[0], wider), data)]
    assert found.forecast is None


def test_a_broken_file_stops_with_the_runs_own_words(pair, data):
    file = Path(pair[1]) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    assert said(doctor(*pair, data=data, **SMALL))[0] == stop_of(pair, data)


def test_a_tensor_of_another_shape_stops_with_the_runs_own_words(pair, data):
    config = json.loads((Path(pair[1]) / "config.json").read_text())
    (Path(pair[1]) / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    assert said(doctor(*pair, data=data, **SMALL))[0] == stop_of(pair, data)


def test_data_that_cannot_be_read_stops(pair, tmp_path):
    found = doctor(*pair, data=str(tmp_path / "absent.jsonl"), **SMALL)
    assert said(found) == [stop_of(pair, str(tmp_path / "absent.jsonl"))]


def without_a_tokenizer(folder):
    for file in Path(folder).glob("*token*"):
        file.unlink()


def pickled(folder):
    torch.save(load_file(Path(folder) / "model.safetensors"), Path(folder) / "pytorch_model.bin")
    (Path(folder) / "model.safetensors").unlink()


def unknown(folder):
    config = Path(folder) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "nosuch"}))


@pytest.mark.parametrize("spoil", [without_a_tokenizer, pickled, unknown])
def test_models_that_cannot_be_read_stop_with_the_runs_own_words(spoil, pair, data):
    for folder in pair:
        spoil(folder)
    assert stop_of(pair, data) in said(doctor(*pair, data=data, **SMALL))


@pytest.mark.parametrize("asked", [{"layers": "99"}, {"general": "absent.jsonl"}, {"seeds": 9}])
def test_what_settings_ask_in_vain_stops_with_the_runs_own_words(asked, pair, data):
    with pytest.raises(MidblockError) as caught:
        midblock.analyze(load_pair(*pair, device="cpu"), data, num_samples=8, num_token_samples=4, **asked)
    assert said(doctor(*pair, data=data, **SMALL, **asked)) == [str(caught.value)]


def test_no_cap_applies_where_only_weights_are_compared(pair, data):
    asked = {"weights_only": True}
    midblock.analyze(load_pair(*pair, device="cpu", max_memory="1MB"), data, **asked)
    found = doctor(*pair, data=data, max_memory="1MB", **asked, **SMALL)
    assert (said(found), found.forecast.demand.passes, found.forecast.demand.estimates) == ([], 0.0, 0)


def test_an_unknown_option_is_an_error_of_the_question(pair):
    with pytest.raises(MidblockError, match=r"unknown option 'num_sample'.*num_samples"):
        doctor(*pair, num_sample=3)


def test_traits_are_told(pico, tuned_from, saved, data):
    base = pico("mixtral")
    pair = saved(base, "base"), saved(tuned_from(base), "sft")
    told = said(doctor(*pair, data=data, **SMALL), "told")
    assert any("mixture of experts" in each for each in told)
    tied = pico("llama_tied")
    pair = saved(tied, "tied"), saved(tuned_from(tied), "tied_sft")
    assert any("tied" in each for each in said(doctor(*pair, data=data, **SMALL), "told"))


def test_an_adapter_of_another_base_stops_and_a_sound_one_is_sized(pico, saved, data, tmp_path):
    base = pico("llama")
    base.name_or_path = saved(base, "base")
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    sound = doctor(str(tmp_path / "base"), str(tmp_path / "adapter"), data=data, **SMALL)
    assert sound.starts
    assert sound.forecast.demand.loading > 0
    other = saved(pico("llama", hidden_size=64), "wider")
    assert not doctor(other, str(tmp_path / "adapter"), data=data, **SMALL).starts


def test_a_chat_template_that_is_not_used_is_told(pair, data):
    config = Path(pair[1]) / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": "{{ messages[0].content }}"}))
    assert any("--template chat" in each for each in said(doctor(*pair, data=data, **SMALL), CARE))


@pytest.mark.parametrize("as_json", [False, True], ids=["lines", "json"])
def test_the_exit_code_says_whether_the_run_would_start(pair, data, capsys, as_json):
    asked = ["--data", data, "--num-samples", "8", "--num-token-samples", "4", *(["--json"] if as_json else [])]
    assert main(["doctor", *pair, *asked]) == 0
    out = capsys.readouterr().out
    if as_json:
        assert json.loads(out)["forecast"]["path"] == "whole models"
    else:
        assert out.endswith("The run would start.\n")
        assert all(
            word in out for word in ("Packages: midblock", "Memory: cpu", "Path: whole", "Time of analyze", "Disk:")
        )
    (Path(pair[1]) / "model.safetensors").unlink()
    assert main(["doctor", *pair, *asked]) == 2
    both = capsys.readouterr()
    assert "the run would not start" in both.err
    assert len(both.err.splitlines()) == 1
    assert not json.loads(both.out)["starts"] if as_json else "STOPS" in both.out
