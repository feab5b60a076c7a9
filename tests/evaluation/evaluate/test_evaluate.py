"""The verb on small models: planted answers are found, a copy is not, what was stopped goes on and ends the same."""

import json

import pytest
import torch

from midblock.base import MidblockError, Silent
from midblock.checkpoints import Pair, load_pair
from midblock.evaluation import Evaluation, evaluate


@pytest.fixture(scope="module")
def made(tmp_path_factory, pico, tokenizer, fit, answered, example_set):
    """`base` knows nothing, `taught` knows half of the questions by heart, `copy` is `base` under another name."""
    folder = tmp_path_factory.mktemp("evaluate")
    rows = [{"question": f"{n} more?", "answer": "jx"[n % 2]} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base, taught = pico("llama"), pico("llama").train()
    examples = example_set(*(answered(row["question"], row["answer"]) for row in rows))
    fit(taught, tokenizer, examples, steps=15)
    for name, model in {"base": base, "taught": taught.eval(), "copy": base}.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def task(made):
    return f"exact_match:{made / 'rows.jsonl'}"


def options(**changes):
    return {"num_samples": 12, "max_new_tokens": 3, "loading": {"device": "cpu"}, **changes}


@pytest.fixture(scope="module")
def run(made, task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    models = [str(made / name) for name in ("base", "taught", "copy")]
    general = str(made / "rows.jsonl")
    tasks = [task, "chain_sum"]
    return evaluate(
        models, tasks, output_dir=folder, target=task, general=general, general_samples=6, **options()
    )  # fmt: skip


def alone(model, tokenizer, prompt, new):
    """Greedy decoding as its definition says, the end of the text left out."""
    ids, written = tokenizer(prompt)["input_ids"], []
    for _ in range(new):
        token = int(model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            return tokenizer.decode(written), False
        written.append(token)
    return tokenizer.decode(written), True


def test_every_output_is_what_the_model_writes_alone(run, made, task, tokenizer):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(made / "taught")
    lines = [each for each in run.samples if (each["model"], each["task"]) == ("taught", task)]
    assert len(lines) == 12
    for line in lines:
        output, cut = alone(model, tokenizer, line["prompt"] + "\n", 3)
        assert (line["output"], line["cut"]) == (output, cut)
        assert line["value"] == float(output.strip().partition("\n")[0] == line["expected"])
    share = sum(line["value"] for line in lines) / 12
    row = run.scores[(run.scores.model == "taught") & (run.scores.task == task)].iloc[0]
    assert row.value == pytest.approx(share)
    assert share > 0.9


def test_a_planted_difference_is_found_and_a_copy_is_not(run, task):
    verdicts = {(row.task, row.first, row.second): row.verdict for row in run.comparisons.itertuples()}
    assert len(verdicts) == 6
    assert verdicts[task, "base", "taught"] == "better"
    assert verdicts[task, "taught", "copy"] == "worse"
    assert verdicts[task, "base", "copy"] == "the evidence does not say"
    assert {said for (name, *_), said in verdicts.items() if name == "chain_sum"} == {"the evidence does not say"}
    assert (run.comparisons.p_holm >= run.comparisons.p).all()


def test_what_was_forgotten_stands_beside_what_was_gained(run, task):
    rows = run.forgetting.set_index("model")
    assert list(rows.index) == ["taught", "copy"]
    gained = run.comparisons[(run.comparisons.task == task) & (run.comparisons.second == "taught")].iloc[0]
    assert rows.gain["taught"] == pytest.approx(gained.difference)
    assert rows.gain_low["taught"] == pytest.approx(gained.low)
    kls = ["kl_general", "kl_general_reverse", "kl_tasks", "kl_tasks_reverse"]
    assert (rows.loc["taught", kls] > 0.01).all()
    assert rows.loc["copy", [*kls, "drift"]].tolist() == pytest.approx([0] * 5, abs=1e-9)
    assert rows.drift["taught"] > 0.01


def test_the_files_are_read_back_as_they_were_made(run):
    again = Evaluation.read(run.folder)
    for name in ("scores", "comparisons", "forgetting"):
        assert getattr(again, name).equals(getattr(run, name))
    assert again.samples == run.samples
    names = {file.name for file in run.folder.iterdir()}
    assert {"scores.csv", "comparisons.csv", "forgetting.csv", "samples.jsonl", "summary.json", "config.yaml"} <= names
    assert not names & {"layers.parquet", "layers.csv", "partial"}
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["headline"].startswith("taught is better than base on")
    record = json.loads((run.folder / "run.json").read_text())
    assert [each["name"] for each in record["models"]] == ["base", "taught", "copy"]
    assert [each["rule"] for each in record["tasks"]] == ["first_line", "first_line"]
    assert any("never stopped" in note for note in record["notes"])
    assert any("6 of the 6 general texts are prompts of the tasks" in note for note in record["notes"])


class Breaking:
    """Progress that stops the run, as Ctrl-C does, when so many items are done."""

    def __init__(self, after):
        self.left = after

    def phase(self, title, total):
        def advance(amount):
            self.left -= amount
            if self.left <= 0:
                raise KeyboardInterrupt

        return advance


@pytest.mark.parametrize("after", [1, 20, 40])
def test_what_was_stopped_goes_on_and_ends_the_same(run, made, task, tmp_path, after):
    models = [str(made / name) for name in ("base", "taught", "copy")]
    asked = options(target=task, general=str(made / "rows.jsonl"), general_samples=6, output_dir=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        evaluate(models, [task, "chain_sum"], progress=Breaking(after), **asked)
    kept = sorted((tmp_path / "run" / "partial").glob("*.json"))
    assert bool(kept) == (after > 12)
    if after == 40:
        kept[0].write_text(kept[0].read_text().replace("value", "valve"))  # damaged: made again
    found = evaluate(models, f"{task},chain_sum", resume=True, **asked)
    assert found.samples == run.samples
    assert all(getattr(found, name).equals(getattr(run, name)) for name in ("scores", "comparisons", "forgetting"))
    notes = json.loads((tmp_path / "run" / "run.json").read_text())["notes"]
    assert any("was damaged" in note for note in notes) == (after == 40)
    again = evaluate(models, [task, "chain_sum"], resume=True, progress=Breaking(1), **asked)  # nothing is done
    assert again.scores.equals(run.scores)


def test_what_another_run_kept_is_refused(made, task, tmp_path):
    models, where = [str(made / "base"), str(made / "taught")], {"output_dir": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        evaluate(models, [task, "chain_sum"], progress=Breaking(13), **options(**where))
    file = next((tmp_path / "run" / "partial").glob("*.json"))
    kept = json.loads(file.read_text())
    with pytest.raises(KeyboardInterrupt):
        evaluate(models, "chain_sum", progress=Breaking(13), **options(**where, overwrite=True))
    file.write_text(json.dumps(kept))
    with pytest.raises(MidblockError, match="kept by another run"):
        evaluate(models, "chain_sum", resume=True, **options(**where))


def test_models_in_memory_of_other_sizes_are_compared_on_what_they_write(pico, tokenizer, task):
    models = Pair(*_variants(pico("llama"), pico("llama", num_hidden_layers=2)), tokenizer)
    found = evaluate(models, task, num_samples=6, max_new_tokens=2, progress=Silent())
    assert found.scores.model.tolist() == ["base", "small"]
    assert found.folder is None
    assert len(found.samples) == 12


def test_models_that_were_loaded_before_stay_loaded(made, task):
    pair = load_pair(str(made / "base"), str(made / "copy"), device="cpu")
    model = pair.base.model
    evaluate(pair, task, num_samples=4, max_new_tokens=2)
    assert pair.base.loaded is model
    assert pair.tuned[0].loaded is None  # it was loaded for this alone


def _variants(base, small):
    from midblock.checkpoints.pair import Variant

    return Variant("base", None, loaded=base), (Variant("small", None, loaded=small),)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ""}, "no task is given"),
        ({"tasks": "chain_sum,chain_sum"}, "given twice"),
        ({"tasks": "chain_sum", "target": "chainsum"}, "unknown target 'chainsum' (did you mean 'chain_sum'?)"),
        ({"tasks": "chain_sum", "reader": "box"}, "did you mean 'boxed'?"),
        ({"tasks": "chain_sum", "num_samples": 1}, "two at least"),
        ({"tasks": "chain_sum", "num_samples": 0}, "num_samples is 0"),
        ({"tasks": "chain_sum", "compare": "refrence"}, "'reference'"),
        ({"tasks": "chain_sum", "reference": "bass"}, "did you mean 'base'?"),
        ({"tasks": "chain_sum", "max_new_tokens": 1000}, "exceeds the model's"),
        ({"tasks": "chain_sum", "general": "nothing.jsonl"}, "nothing.jsonl"),
    ],
)
def test_bad_input_is_one_line(made, changes, said):
    with pytest.raises(MidblockError) as error:
        evaluate([str(made / "base"), str(made / "taught")], **{**options(), **changes})
    assert said in str(error.value)


def test_general_texts_need_two_models(made):
    with pytest.raises(MidblockError, match="give two"):
        evaluate(str(made / "base"), "chain_sum", general=str(made / "rows.jsonl"), **options())
