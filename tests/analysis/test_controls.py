"""Controls: changes of the same size as the tuned model's, made and taken back, and what they say of a real one."""

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from midblock.analysis import analyze
from midblock.analysis.control_rows import beside_random, equal_step_rows, lean, random_rows
from midblock.analysis.control_words import Control, cost_of, read_controls
from midblock.analysis.controls import changed, check_controllable
from midblock.analysis.states import with_states
from midblock.base import LayerRow, LayerTable, MidblockError
from midblock.checkpoints import Anatomy, Pair, load_pair
from midblock.data import load_dataset
from midblock.trace import run_backbone

SMALL = {"num_samples": 8, "num_token_samples": 6, "weights": False, "precision_floor": False}


@pytest.fixture(scope="module")
def data():
    return load_dataset("builtin:chain_sum", num_samples=8)


def state(model):
    return {name: value.detach().clone() for name, value in model.named_parameters(remove_duplicate=False)}


def norms(before, after):
    return {name: float((after[name].double() - value.double()).norm()) for name, value in before.items()}


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "gpt2", "mixtral", "qwen3"])
def test_a_random_change_has_the_norm_of_each_tensor_and_is_taken_back(kind, pico, tuned_from):
    base = pico(kind)
    tuned = tuned_from(base)
    pair = Pair.of_models(base, {"sft": tuned}, None)
    start, own = state(base), state(tuned)
    places = {name: id(value) for name, value in tuned.named_parameters(remove_duplicate=False)}
    with changed(pair, Control("random", 0), 0) as off:
        control = state(tuned)
    assert off <= 1e-5
    expected, found = norms(start, own), norms(start, control)
    for name, value in own.items():  # a vector of eight numbers cannot be rounded to any norm
        assert found[name] == pytest.approx(expected[name], rel=1e-6 if value.ndim > 1 else 1e-5), name
    assert any(not torch.equal(control[name], own[name]) for name in own)
    assert {name: id(value) for name, value in tuned.named_parameters(remove_duplicate=False)} == places
    assert all(torch.equal(value, own[name]) for name, value in state(tuned).items())


def test_random_changes_are_seeded_and_each_draw_is_another(pico, tuned_from):
    base = pico("llama")
    tuned = tuned_from(base)
    pair = Pair.of_models(base, {"sft": tuned}, None)
    made = []
    for draw, seed in ((0, 0), (0, 0), (1, 0), (0, 1)):
        with changed(pair, Control("random", draw), seed):
            made.append(state(tuned)["model.layers.1.mlp.up_proj.weight"])
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert not torch.equal(made[0], made[3])


def test_what_did_not_move_is_left_alone(pico):
    base = pico("llama")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.layers[1].mlp.up_proj.weight += 0.1
    with changed(Pair.of_models(base, {"sft": tuned}, None), Control("random"), 0):
        moved = {name for name, value in state(tuned).items() if not torch.equal(value, state(base)[name])}
    assert moved == {"model.layers.1.mlp.up_proj.weight"}


def test_an_adapters_control_has_its_rank(pico, tokenizer, tmp_path):
    base = pico("llama")
    base.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    wrapped = get_peft_model(copy.deepcopy(base), LoraConfig(r=3, target_modules=["q_proj", "down_proj"]))
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    wrapped.save_pretrained(tmp_path / "adapter")
    pair = load_pair(str(tmp_path / "start"), str(tmp_path / "adapter"), device="cpu")
    start = state(pair.base.model)
    with changed(pair, Control("random"), 0) as off:
        control = state(pair.tuned[0].model)
    assert off <= 1e-6
    for name, value in control.items():
        delta = value.double() - start[name].double()
        wanted = 3 if "q_proj" in name or "down_proj" in name else 0
        spectrum = torch.linalg.svdvals(delta) if delta.ndim == 2 else delta[:0]
        assert int((spectrum > 1e-4 * spectrum.max()).sum() if wanted else delta.any()) == wanted, name


def test_small_types_are_scaled_until_rounding_leaves_the_norm(pico, tuned_from):
    base = pico("llama").bfloat16()
    tuned = tuned_from(base).bfloat16()
    start, own = state(base), state(tuned)
    with changed(Pair.of_models(base, {"sft": tuned}, None), Control("random"), 0) as off:
        found = norms(start, state(tuned))
    assert all(value.dtype == torch.bfloat16 for value in own.values())
    for name, norm in norms(start, own).items():
        assert found[name] == pytest.approx(norm, rel=max(off, 1e-7))
    assert off < 0.05  # a norm's few values cannot be met closer


def test_an_equal_step_is_the_same_share_of_each_block_that_moved(pico):
    base = pico("llama")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for block, amount in ((0, 0.3), (2, 0.01)):
            for value in Anatomy.of(tuned).blocks[block].parameters():
                value += amount * torch.randn(value.shape, generator=torch.Generator().manual_seed(block))
    start, own = state(base), state(tuned)

    def steps(now):
        found = []
        for block in range(3):
            names = [name for name in start if f"layers.{block}." in name]
            change = sum(float((now[name].double() - start[name].double()).square().sum()) for name in names)
            found.append((change / sum(float(start[name].double().square().sum()) for name in names)) ** 0.5)
        return found

    with changed(Pair.of_models(base, {"sft": tuned}, None), Control("equal-step"), 0):
        equal = state(tuned)
    found = steps(equal)
    assert found[1] == 0
    assert found[0] == pytest.approx(found[2], rel=1e-5)
    name = "model.layers.0.self_attn.q_proj.weight"  # only its length is another
    ours, theirs = (each[name].double() - start[name].double() for each in (own, equal))
    assert float(torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)) == pytest.approx(1, abs=1e-6)


def test_an_adapter_in_memory_is_refused_by_name(pico):
    base = pico("llama")
    wrapped = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(MidblockError, match="sft is wrapped by PEFT"):
        check_controllable(Pair.of_models(base, {"sft": wrapped}, None))


def test_a_random_change_is_no_other_than_a_random_one_and_a_planted_one_is(pico, tokenizer, data):
    """A change along the states themselves does more than its size; the null is a change that is random."""
    base = pico("llama")
    blind, aimed = copy.deepcopy(base), copy.deepcopy(base)
    stream = torch.Generator().manual_seed(5)
    given = {}
    hooks = [
        block.mlp.up_proj.register_forward_pre_hook(lambda _, args, place=place: given.update({place: args[0][0]}))
        for place, block in enumerate(Anatomy.of(base).blocks)
    ]
    ids = [token for example in data for token in tokenizer(example.text).input_ids]
    run_backbone(Anatomy.of(base), torch.tensor([ids[:250]]))
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for model in (blind, aimed):
            for place, block in enumerate(Anatomy.of(model).blocks):
                weight, along = block.mlp.up_proj.weight, torch.linalg.svd(given[place], full_matrices=False).Vh[0]
                noise = torch.randn(weight.shape, generator=stream)
                change = noise if model is blind else torch.outer(torch.randn(len(weight), generator=stream), along)
                weight += 0.5 * weight.norm() * change / change.norm()
    pair = Pair.of_models(base, {"blind": blind, "aimed": aimed}, tokenizer)
    table = analyze(pair, data, controls="random", control_draws=5, metrics="change_own", **SMALL)
    null, planted = (beside_random(table, model)["change_own"] for model in ("blind", "aimed"))
    assert len(null["not_different"]) >= 2
    assert planted["above"] == [0, 1, 2]
    rows = table.select(model="aimed", metric="change_own.random").frame
    assert (rows.n == 5).all()
    assert (rows.low < rows.value).all()


def test_where_another_draw_would_lie():
    draws = [[LayerRow("sft", 0, 1, "cka", value, 9)] for value in (0.1, 0.2, 0.3)]
    (row,) = random_rows(draws)
    assert (row.metric, row.value, row.n) == ("cka.random", pytest.approx(0.2), 3)
    assert row.high - row.value == pytest.approx(4.302653 * 0.1 * (4 / 3) ** 0.5, rel=1e-6)


def test_only_what_compares_two_models_has_controls():
    rows = [LayerRow("sft", 0, 1, name, 0.5, 9) for name in ("cka", "l2_norm", "cka.null", "cka.no_sinks")]
    assert [row.metric for row in equal_step_rows(rows)] == ["cka.equal_step", "cka.no_sinks.equal_step"]


def test_nothing_is_said_without_random_changes():
    assert beside_random(LayerTable.from_rows([LayerRow("sft", 0, 1, "change_own", 0.5, 9)]), "sft") == {}


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (0.7, 0.68, "persists"),
        (0.7, 0.55, "vanishes"),
        (0.7, 0.4, "turns"),
        (0.53, 0.482, "vanishes"),  # to the other side, but no lean
        (0.5, 0.9, "no lean"),
        (0.3, None, "not known"),
    ],
)
def test_a_lean_persists_vanishes_or_turns(ours, theirs, said):
    assert lean(ours, theirs) == said


def test_words_of_controls():
    assert read_controls("", 3) == ()
    assert [each.label for each in read_controls(" random , equal-step,random", 2)] == [
        "random0",
        "random1",
        "equal-step0",
    ]
    with pytest.raises(MidblockError, match=r"control 'randon'.*random"):
        read_controls("randon", 3)


def test_the_cost_is_told():
    assert cost_of(()) == ""
    assert "3 more passes of all models" in cost_of(read_controls("random", 3))
    assert "1 more pass of" in cost_of(read_controls("equal-step", 3))


def test_where_one_draw_alone_has_a_value_no_side_is_named():
    """It has no spread: neither the table of controls nor the number's state may call that no other than random."""
    real = LayerRow("sft", 0, 1, "change_own", 0.5, 9, 0.4, 0.6)
    drawn = [[replace(real, value=value)] for value in (0.5, 0.7)]
    for draws, sides in ((drawn, [0]), (drawn[:1], [])):
        rows = [real, *random_rows(draws)]
        assert beside_random(LayerTable.from_rows(rows), "sft")["change_own"]["not_different"] == sides
        assert with_states(rows)[0].state == ("as_random" if sides else "measured")
