"""What users get wrong: each ends in one line that names it, before anything is written or lost."""

import json
import shutil

import pytest

from midblock.base import MidblockError, from_options
from midblock.tuning import tune
from midblock.tuning.loop.outputs import Artifact
from midblock.tuning.loop.tune_settings import TuneSettings


def said(act):
    with pytest.raises(MidblockError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"warmup_steps": float("inf")}, "warmup_steps is inf; it must be finite"),
        ({"weight_decay": float("inf")}, "weight_decay is inf; it must be finite"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf; it must be finite"),
        ({"max_steps": -5}, "max_steps is -5"),
        ({"anchor_k": "8"}, "anchor_k is about an anchor, and there is none"),
        ({"anchor": "rpsft", "anchor_k": "many"}, "anchor_k is 'many'"),
        ({"kl_beta": 0.5}, "the loss nll uses no kl_beta"),
        ({"iw_temperature": 2.0, "loss": "kl"}, "the loss kl uses no iw_temperature"),
        ({"hub_model_id": "a/b"}, "hub_model_id is about uploading"),
    ],
)
def test_options_that_would_be_passed_over_or_fail_late(options, start):
    assert said(lambda: from_options(TuneSettings, options)).startswith(start)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"optim": "galore_adamw"}, "galore_torch"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
        ({"report_to": ("nonsense",)}, "nonsense is not supported"),
        ({"loss": "kl", "reference": "/nowhere/at/all"}, "no model at /nowhere/at/all"),
        ({"push_to_hub": True, "hub_model_id": "a/b/c d"}, "the hub takes no such name"),
    ],
)
def test_nothing_is_written_where_training_could_not_begin(tuned, tmp_path, options, part):
    assert part in said(lambda: tuned(**options))
    assert not (tmp_path / "run").exists()


def test_a_token_is_asked_for_before_training(tuned, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert said(lambda: tuned(push_to_hub=True)).startswith("--push-to-hub needs a token")
    assert not (tmp_path / "run").exists()


def test_a_failed_upload_leaves_the_run_whole(tuned, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    options = {"push_to_hub": True, "hub_model_id": "someone/something", "max_steps": 1}
    # HF_HUB_OFFLINE stands in for a missing network
    for act in (lambda: tuned(**options), lambda: tuned(**options, resume=True)):
        assert "is whole, but was not uploaded" in said(act)
        assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "done"


def test_more_positions_than_the_table_has(pico, tokenizer, tmp_path):
    pico("gpt2").save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "a " * 300, "completion": " b"}) + "\n")
    message = said(lambda: tune(str(tmp_path / "gpt2"), str(tmp_path / "long.jsonl"), output_dir=tmp_path / "run"))
    assert "the model was made for 256" in message
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_of_another_model(pico, tokenizer, sums, tmp_path):
    pico("llama", vocab_size=100).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    message = said(lambda: tune(str(tmp_path / "small"), str(sums), output_dir=tmp_path / "run"))
    assert "the model has 100 tokens" in message


def test_a_rare_log_ends_with_the_last_step(tuned):
    done = tuned(logging_steps=1000, max_steps=3)
    assert [line["step"] for line in done.log] == [1, 3]
    assert done.summary["steps"] == 3


def test_a_warm_up_that_ends_after_the_run(tuned):
    assert "nothing was trained" in said(lambda: tuned(max_steps=1, warmup_steps=0.03))
    assert tuned(name="two", max_steps=2, warmup_steps=0.03).path.is_dir()


def test_a_home_folder(tuned, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert tuned(output_dir="~/at-home", max_steps=1).path == tmp_path / "at-home" / "adapter"
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("gone", ["summary.json", "adapter"])
def test_a_finished_run_that_lost_its_result(tuned, tmp_path, gone):
    done = tuned(max_steps=1)
    lost = done.folder / gone
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    assert gone in said(lambda: tuned(max_steps=1, resume=True))


@pytest.fixture
def stopped(tuned, interrupted):
    """A run that was stopped after its checkpoint at step 4; and how to go on."""
    options = {"max_steps": 5, "save_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        tuned(**options, progress=interrupted("tuning", at=5))
    return lambda: tuned(**options, resume=True)


def test_going_on(stopped):
    done = stopped()
    assert isinstance(done, Artifact)
    assert [line["step"] for line in done.log] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("text", ["", "garbage\n", "[1]\n", '{"step": "x"}\n', '{"step": 1}\n'])
def test_a_log_that_ends_before_the_checkpoint(stopped, tmp_path, text):
    log = tmp_path / "run" / "log.jsonl"
    log.write_text(text)
    assert f"{log} is broken" in said(stopped)
    assert log.read_text() == text
