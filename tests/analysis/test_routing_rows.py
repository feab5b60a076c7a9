"""Router change and expert load in an analysis: what was planted is found, where it was planted and nowhere else."""

import copy
import json
import random

import pytest
import torch
from peft import LoraConfig, get_peft_model

from midblock.analysis import analyze
from midblock.analysis.measure import Measurement
from midblock.analysis.mixtures import mixtures_of, two_prompts
from midblock.analysis.prompts import Prompts
from midblock.analysis.routing_rows import counts
from midblock.analysis.settings import AnalysisSettings
from midblock.base.states import BELOW_FLOOR
from midblock.checkpoints import Anatomy, Pair, load_pair
from midblock.data import TokenizedPrompt, load_dataset, make_batches
from midblock.trace.routing import Choice

from ..families.zoo import make
from ..trace.test_routing import OverPrompts

SMALL = {"num_samples": 10, "num_token_samples": 6, "weights": False}
ROUTING = "router_change,router_change_own,router_change_reaction,router_js,router_js_own,expert_load_shift"
MOVED = 1


@pytest.fixture(scope="module")
def data():
    return load_dataset("builtin:chain_sum", num_samples=10)


def changed(base, part, block=MOVED, scale=0.3):
    """A copy in which the weights of one part of one block have moved."""
    tuned = copy.deepcopy(base)
    found = [each.name for each in Anatomy.of(tuned).projections.values() if each.block == block]
    stream = torch.Generator().manual_seed(3)
    moved = [name for name in found if f".{part}." in name]
    assert moved
    with torch.no_grad():
        for name in moved:
            weight = tuned.get_parameter(name)
            weight += scale * weight.std() * torch.randn(weight.shape, generator=stream)
    return tuned


def measured(base, tuned, data, tokenizer, metrics=ROUTING, **options):
    return analyze(Pair.of_models(base, {"sft": tuned}, tokenizer), data, **{**SMALL, "metrics": metrics, **options})


def curve(table, metric, model="sft"):
    return table.curve(metric, model).value.tolist()


def test_a_router_that_was_tuned_is_found_as_own_change_there_and_nowhere_else(pico, tokenizer, data):
    base = pico("mixtral")
    table = measured(base, changed(base, "gate"), data, tokenizer)
    for metric in ("router_change_own", "router_js_own"):
        own = curve(table, metric)
        assert own[MOVED] > 0.01
        assert own[0] == own[2] == 0
    assert curve(table, "router_change")[MOVED] == curve(table, "router_change_own")[MOVED]
    reaction = curve(table, "router_change_reaction")
    assert reaction[0] == reaction[MOVED] == 0
    assert reaction[2] > 0  # what lies above reacts
    weights = measured(base, changed(base, "gate"), data, tokenizer, "delta_rel", weights_only=True, weights=True)
    assert [value > 0 for value in weights.curve("delta_rel", "sft", "router").value] == [False, True, False]
    assert curve(table, "expert_load_shift")[0] == 0
    assert curve(table, "expert_load_shift")[MOVED] > 0


def test_tuned_experts_change_no_router_and_loads_above_by_reaction_alone(pico, tokenizer, data):
    base = pico("qwen3_moe", num_hidden_layers=4)
    table = measured(base, changed(base, "experts", scale=1.0), data, tokenizer)
    assert curve(table, "router_change_own") == curve(table, "router_js_own") == [0] * 4
    assert curve(table, "router_change") == curve(table, "router_change_reaction")
    assert curve(table, "router_change")[: MOVED + 1] == curve(table, "expert_load_shift")[: MOVED + 1] == [0] * 2
    assert min(curve(table, "router_change")[MOVED + 1 :]) > 0


def test_a_model_does_not_differ_from_itself(pico, tokenizer, data):
    base = pico("olmoe")
    table = measured(base, copy.deepcopy(base), data, tokenizer, ROUTING + ",expert_load_change")
    assert (table.select(model="sft").frame.value == 0).all()
    assert set(table.select(model="sft").frame.state) == {BELOW_FLOOR}


def test_what_rounding_alone_changes_is_measured_beside_it(pico, tokenizer, data):
    base = pico("mixtral")
    table = measured(base, changed(base, "gate"), data, tokenizer)
    floor = curve(table, "router_js.precision_floor", "base")
    assert len(floor) == len(curve(table, "expert_load_shift.precision_floor", "base")) == 3
    assert min(floor) > 0
    assert max(floor) < curve(table, "router_js")[MOVED] / 10
    assert "router_js_own.precision_floor" not in table.metrics


def test_a_random_change_of_the_same_size_stands_beside_it(pico, tokenizer, data):
    base = pico("mixtral")
    asked = f"{ROUTING},expert_load_change"
    table = measured(base, changed(base, "gate"), data, tokenizer, asked, controls="random", control_draws=2)
    for metric in ROUTING.split(","):
        assert len(curve(table, f"{metric}.random")) == 3
    own = curve(table, "router_change_own.random")
    assert own[0] == own[2] == 0 < own[MOVED]
    by_expert = table.select(metric="expert_load_change.random", layer=MOVED).frame
    assert by_expert.module.tolist() == [f"expert:{expert}" for expert in range(4)]
    assert float(by_expert.value.sum()) == pytest.approx(0, abs=1e-9)


def test_loads_are_what_the_models_chose_token_by_token(pico, tokenizer, data):
    """Counted apart, prompt by prompt without padding, from each router's own words."""
    base = pico("mixtral")
    tuned = changed(base, "gate")
    table = measured(base, tuned, data, tokenizer, "expert_load,expert_load_change,expert_load_shift")
    shares = {}
    for name, model in {"base": base, "sft": tuned}.items():
        said = []
        hook = model.model.layers[MOVED].mlp.gate.register_forward_hook(
            lambda module, args, out, said=said: said.append(out[2].flatten()) and None
        )
        for example in data:
            model(input_ids=torch.tensor([tokenizer(example.text).input_ids[:128]]))
        hook.remove()
        shares[name] = torch.bincount(torch.cat(said), minlength=4) / sum(map(len, said))
        rows = table.select(metric="expert_load", model=name, layer=MOVED).frame
        assert rows.module.tolist() == [f"expert:{expert}" for expert in range(4)]
        assert rows.value.tolist() == pytest.approx(shares[name].tolist(), abs=1e-6)
        assert (rows.low < rows.value).all()
        assert (rows.value < rows.high).all()
    moved = shares["sft"] - shares["base"]
    change = table.select(metric="expert_load_change", layer=MOVED).frame
    assert change.value.tolist() == pytest.approx(moved.tolist(), abs=1e-6)
    assert curve(table, "expert_load_shift")[MOVED] == pytest.approx(float(moved.abs().sum()) / 2, abs=1e-6)


def test_padding_and_other_regions_are_not_counted():
    choice = Choice(torch.tensor([[0, 1], [0, 2], [3, 3], [1, 2]]), torch.ones(4, 2))
    mask = torch.tensor([[True, True], [False, True]])
    assert counts(choice, mask, 4).tolist() == [[2, 1, 1, 0], [0, 1, 1, 0]]


def test_a_row_for_each_expert_only_where_it_is_asked_for(pico, tokenizer, data):
    base = pico("mixtral")
    table = measured(base, changed(base, "gate"), data, tokenizer, "standard", num_token_samples=0)
    assert "expert_load_shift" in table.metrics
    assert "router_change" in table.metrics
    assert set(table.frame.module) == {"residual"}


def test_a_model_without_experts_has_no_such_rows_and_no_word_about_them(pico, tokenizer, data):
    base = pico("llama")
    table = measured(base, copy.deepcopy(base), data, tokenizer, "standard", num_token_samples=0)
    assert not [name for name in table.metrics if name.startswith(("router", "expert"))]


@pytest.mark.parametrize("where", ["in memory", "on disk"])
def test_what_moved_of_each_expert(where, pico, tokenizer, data, tmp_path):
    """Expert 2 of one block, by half of what it was; files hold each expert's three weights by themselves."""
    base = pico("mixtral")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for name in ("gate_up_proj", "down_proj"):
            tuned.get_parameter(f"model.layers.{MOVED}.mlp.experts.{name}")[2] *= 1.5
    pair = Pair.of_models(base, {"sft": tuned}, tokenizer)
    if where == "on disk":
        for name, model in {"base": base, "sft": tuned}.items():
            model.save_pretrained(tmp_path / name)
            tokenizer.save_pretrained(tmp_path / name)
        pair = load_pair(str(tmp_path / "base"), str(tmp_path / "sft"))
    asked = "expert_delta_rel,delta_rel,expert_block_drift"
    table = analyze(pair, metrics=asked, weights_only=True, subspace_rank=4)
    found = {(row.layer, row.module): row.value for row in table.select(metric="expert_delta_rel")}
    assert len(found) == 3 * 4
    assert found.pop((MOVED, "expert:2")) == pytest.approx(0.5)
    assert set(found.values()) == {0}
    assert table.curve("delta_rel", "sft", "router").value.tolist() == [0, 0, 0]
    (drift,) = table.select(metric="expert_block_drift")
    assert (drift.layer, drift.module) == (MOVED, "expert:2")
    stacks = [
        base.get_parameter(f"model.layers.{MOVED}.mlp.experts.{name}")[2] for name in ("gate_up_proj", "down_proj")
    ]
    spectra = [torch.linalg.svdvals(each.detach().double()).square() for each in (*stacks[0].chunk(2), stacks[1])]
    assert drift.value == pytest.approx(sum(float((each[:4].sum() / each.sum()).sqrt()) for each in spectra) / 3)


def test_adapters_on_experts_leave_their_routers_alone(pico, tokenizer, data, tmp_path):
    """Attached by PEFT, whose wrappers stand around the experts: the choice is read inside of them."""
    base = pico("mixtral")
    config = LoraConfig(r=2, target_modules=[], target_parameters=[f"{MOVED}.mlp.experts.down_proj"])
    tuned = get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            weight += 0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * (".lora_" in name)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "adapter")
    pair = load_pair(str(tmp_path / "base"), str(tmp_path / "adapter"))
    table = analyze(pair, data, **SMALL, metrics=ROUTING)
    assert curve(table, "router_change_own", pair.tuned[0].name) == [0, 0, 0]
    assert curve(table, "router_change", pair.tuned[0].name)[: MOVED + 1] == [0, 0]
    assert curve(table, "router_change", pair.tuned[0].name)[2] > 0


@pytest.mark.parametrize("family", ["dbrx", "llama4_text"])
def test_what_cannot_be_read_is_said_once(family, tokenizer, tmp_path):
    """A router that only puts out scores has no own change; experts that weigh every token have no load."""
    base = make(family)
    pair = Pair.of_models(base, {"sft": copy.deepcopy(base)}, tokenizer)
    folder = tmp_path / "run"
    table = analyze(pair, load_dataset("builtin:chain_sum", num_samples=8), **SMALL | {"num_samples": 8},
                    metrics=f"{ROUTING},l2_norm", output_dir=str(folder))  # fmt: skip
    notes = [note for note in json.loads((folder / "run.json").read_text())["notes"] if "router" in note]
    assert len(notes) == 1
    assert ("expert_load_shift" in table.metrics) == ("router_change" in table.metrics) == (family == "dbrx")
    assert "router_change_own" not in table.metrics
    said = {
        "dbrx": "No own change of routers, and no reaction: in base, what chooses the experts of block 0 cannot",
        "llama4_text": "No expert load and no router change: in base, the experts of block 1 are not called with",
    }
    assert notes[0].startswith(said[family])


def prompts_in_batches_of(tokens):
    stream = random.Random(1)
    prompts = [
        TokenizedPrompt(i, tuple(stream.randrange(3, 300) for _ in range(length)), 2)
        for i, length in enumerate((3, 17, 5, 5, 11, 4, 23, 8, 9, 14))
    ]
    deep, pooled = (make_batches(each, batch_tokens=tokens, pad_id=0) for each in (prompts[:4], prompts[4:]))
    return Prompts("some:data", deep, pooled, (), {}, [])


def rows_in_batches_of(tokens, pair, mixtures, partial=None, advance=lambda tokens: None, **options):
    whole = prompts_in_batches_of(tokens)
    kinds = frozenset({"pooled", "routers", "loads"})
    measuring = Measurement(
        pair, whole, AnalysisSettings(), kinds, (0, 1, 2), partial, mixtures=mixtures, save_seconds=0, **options
    )
    return {key: rows for key, rows in measuring.run(advance).rows.items() if key.startswith(("routers", "loads"))}


def test_how_prompts_are_batched_changes_no_row_nor_does_a_run_that_goes_on(pico, tuned_from, tmp_path):
    base = pico("mixtral")
    pair = Pair.of_models(base, {"sft": tuned_from(base)}, None)
    mixtures, _ = mixtures_of(pair, prompts_in_batches_of(400), lambda done: None)
    one, other = (rows_in_batches_of(tokens, pair, mixtures) for tokens in (16, 400))
    assert {key.split("|")[0] for key in one} == {"routers", "loads"}
    assert len(one) == len(other) == 3 + 2 * 3
    for key, rows in one.items():
        assert torch.equal(rows.index, torch.arange(10))
        torch.testing.assert_close(rows.values, other[key].values, rtol=1e-4, atol=1e-6)
    rows_in_batches_of(16, pair, mixtures, tmp_path, owner="one")
    pieces = sorted(tmp_path.glob("*.safetensors"))
    pieces[-1].unlink()  # killed before the last batch was kept
    again = rows_in_batches_of(16, pair, mixtures, tmp_path, owner="one")
    assert all(torch.equal(rows.values, one[key].values) for key, rows in again.items())


@pytest.fixture(scope="module")
def on_disk(tokenizer, tmp_path_factory):
    """A base and two models tuned from it, of a family, in folders."""

    def write(family):
        folder, base = tmp_path_factory.mktemp(family), make(family).eval()
        for name, model in {"base": base, "one": changed(base, "mlp"), "two": changed(base, "mlp", scale=0.1)}.items():
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
        return [str(folder / name) for name in ("base", "one", "two")]

    return write


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss", "qwen3_moe", "dbrx"])
def test_block_by_block_the_choices_are_those_of_whole_models(family, on_disk, data, tmp_path):
    found = {}
    for name, cap in {"whole": None, "blocks": "8GB"}.items():
        pair = load_pair(*on_disk(family), device="cpu", max_memory=cap)
        options = {**SMALL, "metrics": f"expert_load,expert_load_change,{ROUTING}"}
        found[name] = analyze(pair, data, output_dir=tmp_path / name, **options).frame
        record = json.loads((tmp_path / name / "run.json").read_text())
        assert record.get("engine", {"kind": "whole models"})["kind"].startswith("block" if cap else "whole")
    columns = ["metric", "layer", "module", "model", "value", "low", "high"]
    whole, blocks = (each[columns].reset_index(drop=True) for each in found.values())
    own = {"router_change_own", "router_js_own"} - (
        {"router_change_own", "router_js_own"} if family == "dbrx" else set()
    )
    assert {"expert_load", "expert_load_shift", "router_change", *own} <= set(whole.metric)
    assert whole.equals(blocks)


def test_block_by_block_a_run_that_was_stopped_goes_on(on_disk, tmp_path):
    folders = on_disk("mixtral")
    whole = load_pair(*folders, device="cpu")
    expected = rows_in_batches_of(16, whole, mixtures_of(whole, prompts_in_batches_of(16), lambda done: None)[0])
    for after in (3, 19, 40, None):
        pair, heard = load_pair(*folders, device="cpu"), []

        def stopped(tokens, heard=heard, after=after):
            heard.append(tokens)
            if len(heard) == after:
                raise KeyboardInterrupt

        pair.open_parts()
        try:
            mixtures, notes = mixtures_of(pair, prompts_in_batches_of(16), lambda done: None)
            assert not notes
            found = rows_in_batches_of(16, pair, mixtures, tmp_path, owner="one", limit=1, advance=stopped)
        except KeyboardInterrupt:
            continue
        finally:
            pair.close_parts()
    assert len(heard) > 40
    assert found.keys() == expected.keys()
    assert all(torch.equal(rows.values, expected[key].values) for key, rows in found.items())


def test_routers_that_look_across_prompts_are_not_measured(pico, tuned_from):
    base = pico("mixtral")
    base.model.layers[1].mlp.gate = OverPrompts(base.model.layers[1].mlp.gate)
    pair = Pair.of_models(base, {"sft": tuned_from(base)}, None)
    found, (note,) = mixtures_of(pair, prompts_in_batches_of(400), lambda done: None)
    assert not found
    assert "in base, the experts of block 1 depend on the other prompts of a batch" in note


def test_the_two_prompts_that_mixtures_are_found_on():
    def batches(*lengths, tokens=400):
        made = [TokenizedPrompt(n, tuple(range(3, 3 + length)), 1) for n, length in enumerate(lengths)]
        return make_batches(made, batch_tokens=tokens)

    for given in (batches(9, 5), batches(9, 5, tokens=9)):  # in one batch, and in one each
        both, last = two_prompts(given)
        assert both.input_ids.tolist() == [[3, 4, 5, 6, 7]] * 2
        assert bool(both.attention_mask.all())
        assert last.input_ids.tolist() == both.input_ids[1:].tolist()
    both, last = two_prompts(batches(3))
    assert both.input_ids.tolist() == [[3, 4, 5], [5, 4, 3]]
    assert last.input_ids.tolist() == [[5, 4, 3]]
