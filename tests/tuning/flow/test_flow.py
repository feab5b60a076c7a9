"""`flow` from references to files: against gradients computed by hand, and what it leaves, refuses and resumes."""

import json

import numpy as np
import pytest
import torch
import transformers

from midblock.base import LayerPlan, LayerRow, MidblockError
from midblock.checkpoints import LoadSettings, open_checkpoint
from midblock.runs.record import read_record
from midblock.tuning import tune
from midblock.tuning.flow.flow import flow
from midblock.tuning.flow.rows import summarize_flow
from midblock.tuning.flow.settings import FEW_STEPS, FlowSettings
from midblock.tuning.loop import training
from midblock.tuning.loop.examples import Collator
from midblock.tuning.loop.tune_settings import TuneSettings
from midblock.tuning.place.prepared import prepare

GRADIENT = ["gradient_norm", "gradient_norm_first", "gradient_agreement", "gradient_snr"]


@pytest.fixture
def flowing(llama, sums, tmp_path):
    """Four steps on the pico Llama on the CPU; any option may be given."""

    def run(**options):
        given = {"max_steps": 4, "learning_rate": 1e-3, "device": "cpu", "output_dir": tmp_path / "run", **options}
        base, data = str(given.pop("base", llama)), given.pop("data", str(sums))
        return flow(base, data, given.pop("layers", "all"), **given).frame

    return run


def values(frame, metric, module="block"):
    found = frame[(frame.metric == metric) & (frame.module == module)]
    return dict(zip(found.layer, found.value, strict=True))


@pytest.fixture
def batches(monkeypatch):
    """The batches that training makes, in their order."""
    seen = []

    class Recorded(Collator):
        def __call__(self, rows):
            seen.append(super().__call__(rows))
            return seen[-1]

    monkeypatch.setattr(training, "Collator", Recorded)
    return seen


def gradients_by_hand(model, batches):
    """Plain autograd, step by step at the same weights: parameter → K flat gradients in float64."""
    found = {}
    for batch in batches:
        model.zero_grad()
        model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss.backward()
        for name, value in model.named_parameters():
            if value.requires_grad:
                found.setdefault(name, []).append(value.grad.double().flatten().numpy())
    return {name: np.stack(each) for name, each in found.items()}


def prepared_model(base, method):
    settings = TuneSettings(method=method, target_modules="all" if method == "lora" else None)
    plan = LayerPlan.parse("all", 3)
    return prepare(open_checkpoint(str(base)), plan, settings, LoadSettings(dtype="float32", device="cpu")).model


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family_name", ["llama", "llama_tied", "mixtral"])
def test_numbers_are_those_of_plain_autograd(method, family_name, flowing, pico, tokenizer, batches, tmp_path):
    base = tmp_path / "start"
    pico(family_name).save_pretrained(base)
    tokenizer.save_pretrained(base)
    given = {"also": ("embedding",)} if method == "full" else {"target_modules": "all"}
    # every tensor is kept whole
    frame = flowing(base=base, method=method, learning_rate=1e-9, sketch_size=2**14, **given)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if method == "lora":
        model = prepared_model(base, method)
    by_name = gradients_by_hand(model, batches[:4])
    for layer in range(3):
        steps = np.hstack([each for name, each in by_name.items() if f".layers.{layer}." in name])
        check(frame, layer, "block", steps)
        attention = [each for name, each in by_name.items() if f".layers.{layer}.self_attn." in name]
        check(frame, layer, "attention", np.hstack(attention))
    if method == "full":
        check(frame, -1, "embedding", by_name["model.embed_tokens.weight"])


def check(frame, layer, module, steps):
    norms = np.linalg.norm(steps, axis=1)
    assert values(frame, "gradient_norm", module)[layer] == pytest.approx(norms.mean(), rel=1e-4)
    assert values(frame, "gradient_norm_first", module)[layer] == pytest.approx(norms[0], rel=1e-4)
    gram = steps @ steps.T
    pairs = np.triu_indices(4, 1)
    cosines = (gram / np.outer(norms, norms))[pairs]
    assert values(frame, "gradient_agreement", module)[layer] == pytest.approx(cosines.mean(), abs=1e-5)
    snr = gram[pairs].mean() / steps.var(axis=0, ddof=1).sum()
    assert values(frame, "gradient_snr", module)[layer] == pytest.approx(snr, rel=1e-3, abs=1e-5)


def test_small_sketches_give_nearly_the_same(flowing, tmp_path):
    whole = flowing(method="full", output_dir=tmp_path / "whole")
    few = flowing(method="full", sketch_size=256, output_dir=tmp_path / "few")
    for layer, value in values(whole, "gradient_agreement").items():
        # of about ten tensors, pairs of four steps
        assert values(few, "gradient_agreement")[layer] == pytest.approx(value, abs=256**-0.5)
    assert values(few, "gradient_agreement") != values(whole, "gradient_agreement")
    assert values(few, "gradient_norm") == values(whole, "gradient_norm")
    noted, silent = (read_record(tmp_path / name)["notes"] for name in ("few", "whole"))
    assert ["sketches of 256 numbers" in note for note in noted] == [True]
    assert silent == []


def test_accumulated_batches_are_one_batch(flowing, tmp_path):
    whole = flowing(per_device_train_batch_size=4, output_dir=tmp_path / "whole")
    parts = flowing(per_device_train_batch_size=2, gradient_accumulation_steps=2, output_dir=tmp_path / "parts")
    assert len(whole) == len(parts)
    for metric in GRADIENT:
        assert values(parts, metric) == pytest.approx(values(whole, metric), rel=1e-3, abs=1e-4)


def test_norms_are_those_of_the_log_and_movement_is_that_of_tune(flowing, tmp_path, llama, sums):
    frame = flowing(layers="001", target_modules="all")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    logged = [line["gradient_by_block"]["2"] for line in lines]
    assert values(frame, "gradient_norm") == pytest.approx({2: np.mean(logged)})  # no rows of blocks without a gradient
    assert values(frame, "gradient_norm_first") == pytest.approx({2: logged[0]})
    row = frame[(frame.metric == "gradient_norm") & (frame.module == "block")].iloc[0]
    assert row.low < row.value < row.high
    assert row.n == 4
    same = {"max_steps": 4, "learning_rate": 1e-3, "device": "cpu", "lr_scheduler_type": "constant"}
    tuned = tune(str(llama), str(sums), "001", target_modules="all", output_dir=tmp_path / "t" / "run", **same)
    for metric in ("delta_fro", "delta_rel"):
        expected = values(tuned.table.frame, metric)
        assert values(frame, metric) == expected
        assert expected[2] > 0 == expected[0]


def test_the_anchor_is_no_part_of_the_gradient(flowing, tmp_path):
    frame = flowing(method="full", anchor="rpsft", anchor_k="8", anchor_lambda=1e4)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    logged = np.mean([line["gradient_by_block"]["1"] for line in lines])
    assert values(frame, "gradient_norm")[1] < 0.1 * logged
    assert values(frame, "gradient_norm_first")[1] == pytest.approx(lines[0]["gradient_by_block"]["1"], rel=1e-3)


def test_what_a_run_leaves(flowing, tmp_path):
    flowing()
    wanted = {"run.json", "config.yaml", "plan.json", "log.jsonl", "layers.parquet", "layers.csv", "summary.json"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == wanted
    record = read_record(tmp_path / "run")
    assert (record["verb"], record["status"]) == ("flow", "done")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary) == ["headline", "models", "method", "steps", "loss", "peak"]
    assert (summary["method"], summary["steps"], summary["models"]) == ("lora", 4, [])
    assert set(summary["peak"]) == {"gradient_norm", "gradient_agreement", "delta_rel"}
    assert summary["headline"].endswith("(4 steps, LoRA).")


def test_one_step_has_norms_but_no_agreement(flowing, tmp_path):
    frame = flowing(max_steps=1)
    assert set(frame.metric) & set(GRADIENT) == {"gradient_norm", "gradient_norm_first"}
    assert values(frame, "gradient_norm") == values(frame, "gradient_norm_first")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["peak"]["gradient_agreement"] is None


class Stopping:
    """A progress that ends the run in the middle, as Ctrl-C does."""

    def phase(self, title, total):
        left = iter([True, True])

        def advance(amount):
            if title == "tuning" and amount and not next(left, False):
                raise KeyboardInterrupt

        return advance


def test_a_stopped_run_begins_its_steps_anew_and_ends_alike(flowing, tmp_path):
    whole = flowing(lora_dropout=0.1, output_dir=tmp_path / "w" / "run")
    with pytest.raises(KeyboardInterrupt):
        flowing(lora_dropout=0.1, progress=Stopping())
    assert read_record(tmp_path / "run")["status"] == "running"
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) >= 2
    again = flowing(lora_dropout=0.1, resume=True)
    assert again.equals(whole)
    stamp = (tmp_path / "run" / "run.json").stat().st_mtime_ns
    assert flowing(lora_dropout=0.1, resume=True).equals(whole)
    assert (tmp_path / "run" / "run.json").stat().st_mtime_ns == stamp
    with pytest.raises(MidblockError, match=r"sketch_size: 8192 then, 64 now"):
        flowing(lora_dropout=0.1, resume=True, sketch_size=64)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"max_steps": 1, "warmup_steps": 1, "lr_scheduler_type": "linear"}, "at a learning rate of 0"),
        ({"warmup_steps": 2}, "no warm-up"),
        ({"max_steps": -1}, "how many steps"),
        ({"sketch_size": 0}, "must lie between 1 and"),
        ({"shard": True}, "unknown option 'shard'"),
        ({"push_to_hub": True}, "unknown option 'push_to_hub'"),
        ({"save_steps": 5}, "unknown option 'save_steps'"),
        ({"prefix_cache": "on"}, "unknown option 'prefix_cache'"),
        ({"layers": "000"}, "selects none"),
    ],
)
def test_what_the_user_can_mend_is_said_in_one_line(flowing, options, said):
    with pytest.raises(MidblockError) as caught:
        flowing(**options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_rate_too_small_to_move_a_weight_leaves_no_table_of_zeros(flowing, tmp_path):
    with pytest.raises(MidblockError, match=r"^no weight moved in 4 steps"):
        flowing(method="full", learning_rate=1e-30)
    assert not (tmp_path / "run" / "layers.parquet").exists()


def test_options_are_those_of_tune_but_for_what_a_few_steps_do_not_need():
    ours, theirs = (set(each.__dataclass_fields__) for each in (FlowSettings, TuneSettings))
    assert ours - theirs == {"sketch_size"}
    settings = FlowSettings()
    assert (settings.max_steps, settings.lr_scheduler_type) == (10, "constant")
    assert (FEW_STEPS.save_steps, FEW_STEPS.logging_steps) == (0, 1)
    with pytest.raises(MidblockError, match="kl_beta"):
        FlowSettings(kl_beta=0.5)


def curves(**metrics):
    """Rows of blocks: value, or (value, low, high)."""
    return [
        LayerRow("run", layer, len(found), metric, *(value[:1]), 5, *value[1:], module="block")
        for metric, found in metrics.items()
        for layer, value in enumerate(found)
    ]


@pytest.mark.parametrize(
    ("agree", "said"),
    [
        ([(0.1, 0.0, 0.2), (0.8, 0.7, 0.9), (0.79, 0.7, 0.9), (0.2, 0.1, 0.3)], " and agree most in blocks 1–2"),
        ([(0.1, -0.9, 0.9)] * 4, "; how well they agree does not clearly differ with depth"),
        ([], ""),
    ],
)
def test_the_headline(agree, said):
    rows = curves(
        gradient_norm=[(1.0,), (5.0,), (2.0,), (1.0,)],
        gradient_agreement=agree,
        delta_rel=[(0.0,), (1.0,), (2.0,), (9.0,)],
    )
    summary = summarize_flow(rows, [{"loss": 3.0}, {"loss": 2.0}], "full")
    expected = f"Gradients are largest in block 1{said}; weights moved most in block 3 (2 steps, full tuning)."
    assert summary["headline"] == expected
    assert summary["loss"] == {"first": 3.0, "last": 2.0}
    assert summary["peak"]["gradient_norm"] == 1
    assert summary["peak"]["delta_rel"] == 3


def test_the_headline_of_one_block_and_of_none():
    rows = [LayerRow("run", 1, 3, metric, value, 5, module="block") for metric, value in
            (("gradient_norm", 2.5), ("gradient_agreement", 0.4), ("delta_rel", 1e-3))]  # fmt: skip
    said = summarize_flow(rows, [{"loss": 3.0}], "lora")["headline"]
    assert said.startswith(
        "Block 1 alone was trained: its gradient's norm is 2.5, and those of different steps agree by"
    )
    assert said.endswith("0.40 (1 step, LoRA).")
    outside = [LayerRow("run", 3, 3, "gradient_norm", 2.5, 5, module="block")]
    summary = summarize_flow(outside, [{"loss": 3.0}], "full")
    assert summary["headline"].startswith("No block was trained")
    assert summary["peak"] == {"gradient_norm": None, "gradient_agreement": None, "delta_rel": None}


def test_movement_that_is_the_same_everywhere_has_no_peak():
    rows = curves(gradient_norm=[(1.0,), (5.0,), (2.0,)], delta_rel=[(1.6e-4,), (1.7e-4,), (1.65e-4,)])
    assert "weights moved alike at all depths" in summarize_flow(rows, [{"loss": 3.0}] * 3, "lora")["headline"]
