"""Full tuning on a pico model: a real Trainer, a tiny set it can learn."""

import json
import subprocess
import sys

import pytest
import torch
import transformers

from midblock.base import MidblockError, Progress
from midblock.checkpoints import load_model, open_checkpoint
from midblock.checkpoints.settings import LoadSettings
from midblock.data import Example, ExampleSet, encode
from midblock.tuning import FullTuning, tune_fully

SETTINGS = FullTuning(max_steps=6, per_device_train_batch_size=2, learning_rate=5e-3, max_length=64, device="cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory, pico, tokenizer):
    folder = tmp_path_factory.mktemp("tuning") / "base"
    pico("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return open_checkpoint(str(folder))


def questions(prompt="What is {} + 1?", count=4):
    examples = tuple(Example(prompt.format(n), f"It is {n + 1}.") for n in range(count))
    return ExampleSet("made here", "train", "question/answer", examples, "abc")


def state_of(folder):
    return load_model(open_checkpoint(str(folder)), LoadSettings(device="cpu")).state_dict()


def test_the_loss_falls_and_the_whole_model_moves(base, tmp_path):
    losses = tune_fully(base, questions(), tmp_path / "sft", SETTINGS)
    assert len(losses) == 6
    assert losses[-1] < 0.7 * losses[0]
    before, after = state_of(base.folder), state_of(tmp_path / "sft")
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_only_completion_tokens_count(base, tmp_path):
    """The first loss is the mean over completion tokens alone, end of text included."""
    data = questions(count=2)
    first = tune_fully(base, data, tmp_path / "sft", FullTuning(**{**vars(SETTINGS), "max_steps": 1}))[0]
    model = load_model(base, LoadSettings(device="cpu"))
    total = count = 0
    for prompt in encode(data, base.tokenizer(), max_length=64, add_eos=True).prompts:
        assert prompt.input_ids[-1] == base.tokenizer().eos_token_id
        ids = torch.tensor([prompt.input_ids])
        scores = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), dim=-1)
        picked = scores[torch.arange(len(scores)), ids[0, 1:]][prompt.answer_start - 1 :]
        total, count = total - float(picked.sum()), count + len(picked)
    assert first == pytest.approx(total / count, rel=1e-4)


def test_the_same_seed_gives_the_same_losses_and_weights(base, tmp_path):
    one, same = (tune_fully(base, questions(), tmp_path / name, SETTINGS) for name in ("one", "same"))
    other = tune_fully(base, questions(), tmp_path / "other", FullTuning(**{**vars(SETTINGS), "seed": 1}))
    assert one == same
    assert one != other
    ours, theirs = state_of(tmp_path / "one"), state_of(tmp_path / "same")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_folder_is_a_model_that_says_how_it_was_made(base, tmp_path):
    losses = tune_fully(base, questions(), tmp_path / "deep" / "sft", SETTINGS)
    made = open_checkpoint(str(tmp_path / "deep" / "sft"))
    assert made.tokenizer().get_vocab() == base.tokenizer().get_vocab()
    record = json.loads((made.folder / "tuning.json").read_text())
    assert record["losses"] == losses
    assert record["max_steps"] == 6
    assert (record["data"], record["split"], record["content_hash"]) == ("made here", "train", "abc")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["sft"]


class Interrupts:
    """Progress that gives up at a step, as a person pressing Ctrl-C does."""

    def __init__(self, step):
        self.left = step

    def phase(self, title, total):
        assert total == 6
        return self.advance

    def advance(self, amount):
        self.left -= amount
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("there", [False, True])
def test_the_folder_is_whole_or_as_it_was(base, tmp_path, there):
    assert isinstance(Interrupts(3), Progress)
    if there:
        (tmp_path / "sft").mkdir()
        (tmp_path / "sft" / "old").write_text("x")
    with pytest.raises(KeyboardInterrupt):
        tune_fully(base, questions(), tmp_path / "sft", SETTINGS, Interrupts(3))
    assert [path.name for path in tmp_path.rglob("*")] == (["sft", "old"] if there else [])
    tune_fully(base, questions(), tmp_path / "sft", SETTINGS)
    assert not (tmp_path / "sft" / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["sft"]


def test_a_place_that_cannot_be_written(base, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MidblockError, match=r"cannot write .*file/sft"):
        tune_fully(base, questions(), tmp_path / "file" / "sft", FullTuning(**{**vars(SETTINGS), "max_steps": 1}))


def test_nothing_left_to_learn_from(base, tmp_path):
    long = "What is {} plus one, and how would you explain it to someone who never added before?"
    with pytest.raises(MidblockError, match="no completion of made here fits in 20 tokens"):
        tune_fully(base, questions(long), tmp_path / "sft", FullTuning(**{**vars(SETTINGS), "max_length": 20}))
    assert not (tmp_path / "sft").exists()


def test_a_loss_that_is_no_number(base, tmp_path):
    wild = FullTuning(**{**vars(SETTINGS), "learning_rate": 1e30})
    with pytest.raises(MidblockError, match=r"the loss is (nan|inf) at step \d .*lower the learning rate"):
        tune_fully(base, questions(), tmp_path / "sft", wild)
    assert not (tmp_path / "sft").exists()


TOO_LARGE = """
import resource, sys
from pathlib import Path
from midblock.base import MidblockError
from midblock.checkpoints import open_checkpoint
from midblock.data import Example, ExampleSet
from midblock.tuning import FullTuning, tune_fully
data = ExampleSet("made here", "train", "question/answer", (Example("What is 1 + 1?", "It is 2."),), "abc")
settings = FullTuning(max_steps=1, device="cpu")
checkpoint = open_checkpoint(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    tune_fully(checkpoint, data, Path(sys.argv[2]), settings)
except MidblockError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits there")
def test_weights_that_the_system_refuses_to_write(base, tmp_path):
    command = [sys.executable, "-c", TOO_LARGE, str(base.folder), str(tmp_path / "sft")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write {tmp_path / 'sft'}: ")
    assert list(tmp_path.iterdir()) == []


def test_several_gpus_are_not_used_unasked(base, tmp_path, monkeypatch):
    seen = []

    class Spied(transformers.Trainer):
        def __init__(self, model, arguments, **rest):
            super().__init__(model, arguments, **rest)
            seen.append((arguments.n_gpu, arguments.train_batch_size))

    class FourGpus(transformers.TrainingArguments):
        def __post_init__(self):
            super().__post_init__()
            self._n_gpu = 4

    monkeypatch.setattr(transformers, "Trainer", Spied)
    monkeypatch.setattr(transformers, "TrainingArguments", FourGpus)
    tune_fully(base, questions(), tmp_path / "sft", FullTuning(**{**vars(SETTINGS), "max_steps": 1}))
    assert seen == [(1, 2)]
