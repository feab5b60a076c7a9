import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midblock.base import LayerPlan, MidblockError, divide
from midblock.base.depth_list import per_block, read_numbers
from midblock.checkpoints.places import located
from midblock.interventions.merge.alphas import Alphas, modules_of, read_overrides
from midblock.interventions.merge.settings import MergeSettings, with_texts
from midblock.runs.where import Where


def at(name, blocks=3):
    """A tensor as far as its name tells."""
    holder = re.match(r"(.*?)\.\d+\.", name)
    return located(name, (), {"blocks": holder[1] if holder else "-"}, blocks)


NUMBERS = st.floats(-2, 3, allow_nan=False)


def mergekit_gradient(numbers, block, blocks):
    """The published rule, in floating point: t from 0 to 1 over the blocks, linear between the numbers."""
    scaled = block / (blocks - 1) * (len(numbers) - 1)
    low = int(scaled)
    high = min(low + 1, len(numbers) - 1)
    return (1 - (scaled - low)) * numbers[low] + (scaled - low) * numbers[high]


@given(st.lists(NUMBERS, min_size=2, max_size=9), st.integers(9, 60))
def test_a_gradient_is_mergekits(numbers, blocks):
    found = per_block(numbers, blocks)
    assert found == pytest.approx([mergekit_gradient(numbers, block, blocks) for block in range(blocks)], abs=1e-12)
    assert (found[0], found[-1]) == (numbers[0], numbers[-1])


def test_a_block_on_one_of_the_numbers_gets_it_exactly():
    # 1 / 49 * 49 is below 1 in floating point, and a block that should be copied would be computed
    numbers = [0.0, *[1.0] * 49]
    assert per_block(numbers, 50)[1] == 1.0
    assert all(per_block([0.0, 1.0, 0.0], blocks)[blocks // 2] == 1.0 for blocks in range(5, 99, 2))


@given(st.lists(st.sampled_from([0, 1]), min_size=2, max_size=9), st.integers(9, 60))
def test_segments_are_those_of_layer_plans(marks, blocks):
    if not any(marks):
        marks[0] = 1
    plan = LayerPlan.parse("".join(map(str, marks)), blocks)
    chosen = tuple(block for block, alpha in enumerate(per_block(marks, blocks, "segments")) if alpha)
    assert chosen == plan.blocks


def test_one_number_or_one_a_block_is_taken_as_it_is():
    assert per_block([0.3], 4) == (0.3,) * 4
    for interpolation in ("gradient", "segments"):
        assert per_block([0.1, 0.7, 0.2], 3, interpolation) == (0.1, 0.7, 0.2)


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ("0,,1", "'' is no number"),
        ("0,half", "'half' is no number"),
        ("0,nan", "not finite"),
        ("inf", "not finite"),
        ([], "no number given"),
    ],
)
def test_what_is_no_number_is_refused(numbers, says):
    with pytest.raises(MidblockError, match=says):
        read_numbers(numbers)


def test_numbers_are_read_in_every_form():
    assert read_numbers("0, .5,1") == read_numbers([0, 0.5, 1]) == read_numbers("[0,0.5,1]") == (0.0, 0.5, 1.0)
    assert (
        with_texts({"module_alphas": "mlp=1"})
        == with_texts({"module_alphas": ["mlp=1"]})
        == {"module_alphas": ("mlp=1",)}
    )
    assert read_numbers(0.25) == read_numbers("0.25") == (0.25,)


def test_more_numbers_than_blocks_fit_nothing():
    with pytest.raises(MidblockError, match="4 alphas fit neither the model's 3 blocks nor segments"):
        per_block([0, 1, 0, 1], 3)
    with pytest.raises(MidblockError, match="did you mean 'gradient'"):
        per_block([0, 1], 3, "gradeint")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["mlp"], "like mlp=0,0.5,1"),
        (["=1"], "cannot read"),
        (["mlp=x"], "alphas of mlp: 'x'"),
        (["mlp=0", "mlp=1"], "twice"),
        (["head=1"], "--head-alpha"),
        (["embedding=1"], "--embedding-alpha"),
    ],
)
def test_module_alphas_that_cannot_be_read(given, says):
    with pytest.raises(MidblockError, match=says):
        read_overrides(given)


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("model.layers.1.self_attn.q_proj.weight", ("q_proj", "attention")),
        ("model.layers.1.self_attn.q_proj.bias", ("bias", "q_proj", "attention")),
        ("model.layers.1.self_attn.q_norm.weight", ("norm",)),
        ("model.layers.1.post_attention_layernorm.weight", ("norm",)),
        ("model.layers.1.mlp.experts.gate_up_proj", ("gate_up", "mlp")),
        ("model.layers.1.mlp.gate.weight", ("router",)),
        ("model.layers.1.block_sparse_moe.experts.2.w2.weight", ("down_proj", "mlp")),
        ("transformer.h.1.attn.c_proj.bias", ("bias", "o_proj", "attention")),
        ("transformer.h.1.ln_attn.weight", ("norm",)),
        ("model.decoder.layers.1.fc1.weight", ("up_proj", "mlp")),
        ("gpt_neox.layers.1.attention.query_key_value.weight", ("qkv", "attention")),
        ("model.norm.weight", ()),
        ("lm_head.weight", ()),
    ],
)
def test_modules_a_tensor_answers_to(name, modules):
    assert modules_of(at(name)) == modules


def test_the_narrower_name_wins():
    alphas = Alphas((0.0, 0.0), 0.1, 0.9, {"attention": (0.5, 0.5), "norm": (0.7, 0.8), "q_proj": (1.0, 0.2)})
    layer = "model.layers.1."
    assert alphas.of(at(layer + "self_attn.q_proj.weight")) == alphas.of(at(layer + "self_attn.q_proj.bias")) == 0.2
    assert alphas.of(at(layer + "self_attn.k_proj.weight")) == 0.5
    assert alphas.of(at(layer + "self_attn.q_norm.weight")) == alphas.of(at(layer + "input_layernorm.weight")) == 0.8
    assert alphas.of(at(layer + "mlp.up_proj.weight")) == 0.0
    assert alphas.of(at("model.embed_tokens.weight")) == alphas.of(at("transformer.wpe.weight")) == 0.1
    assert alphas.of(at("model.norm.weight")) == alphas.of(at("lm_head.weight")) == 0.9


def test_overrides_that_match_nothing():
    names = ["h.0.attn.c_attn.weight", "h.0.attn.c_proj.weight", "h.0.mlp.c_fc.weight"]
    tensors = [at(name, 1) for name in names]
    Alphas((0.0,), 0.0, 0.0, {"mlp": (1.0,), "qkv": (1.0,)}).check_overrides(tensors)
    for module, says in (
        ("q_proj", "stored together with others as qkv"),
        ("router", "no tensor of the model takes"),
        ("mpl", "did you mean 'mlp'"),
    ):
        with pytest.raises(MidblockError, match=says):
            Alphas((0.0,), 0.0, 0.0, {module: (1.0,)}).check_overrides(tensors)
    # a group whose members all have alphas of their own decides nothing
    with pytest.raises(MidblockError, match="module mlp"):
        Alphas((0.0,), 0.0, 0.0, {"mlp": (1.0,), "up_proj": (0.0,)}).check_overrides(tensors)


def test_embedding_follows_the_first_block_and_head_the_last():
    alphas = MergeSettings().alphas((0.2, 0.8), 5, tied=False)
    assert (alphas.embedding, alphas.head) == (0.2, 0.8)
    alphas = MergeSettings(embedding_alpha=0.0, head_alpha=1).alphas((0.2, 0.8), 5, tied=False)
    assert (alphas.embedding, alphas.head) == (0.0, 1.0)


def test_a_tied_head_takes_one_alpha():
    assert MergeSettings(embedding_alpha=0.5, head_alpha=0.5).alphas((0.0, 1.0), 4, tied=True).head == 0.5
    with pytest.raises(MidblockError, match="tied to the embedding"):
        MergeSettings(head_alpha=0.5).alphas((0.0, 1.0), 4, tied=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"interpolation": "segment"}, "did you mean 'segments'"),
        ({"dtype": "int8"}, "unknown dtype"),
        ({"head_alpha": float("nan")}, "head_alpha: nan is not finite"),
        ({"module_alpha": ("mlp=1",)}, "did you mean 'module_alphas'"),
    ],
)
def test_settings_that_are_refused(options, says):
    with pytest.raises(MidblockError, match=says):
        divide(with_texts(options), MergeSettings, Where)
