import copy
import random
import re

import pytest
import scipy.special
import scipy.stats
import torch
import transformers
from safetensors.torch import load_file

from midblock.analysis.lens import lens_positions
from midblock.analysis.measure import ROUNDED_BASE, Measurement, total_tokens
from midblock.analysis.prompts import Prompts
from midblock.analysis.rounding import rounded
from midblock.analysis.settings import AnalysisSettings
from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, Pair
from midblock.data import TokenizedPrompt, make_batches
from midblock.metrics.catalogue import METRICS, columns, computed_from
from midblock.metrics.tokens import Tokens
from midblock.trace import RowStore, run_backbone, watch

LAYERS = (-1, 0, 1, 2, 3)
TOKENS = computed_from("tokens", METRICS)
EVERYTHING = frozenset({"pooled", "tokens", "lens", "views", "floor"})
LENGTHS = (3, 17, 5, 5, 11, 4, 23, 8, 9, 14)


def token_lists():
    stream = random.Random(0)
    return [
        TokenizedPrompt(i, tuple(stream.randrange(3, 300) for _ in range(length)), length // 2)
        for i, length in enumerate(LENGTHS)
    ]


def prompts_of(tokens, batch_tokens=64, deep=4, pad_id=0):
    batch = {"batch_tokens": batch_tokens, "pad_id": pad_id}
    views = tuple(make_batches(tokens, **batch) for _ in range(2))
    return Prompts(
        "some:data", make_batches(tokens[:deep], **batch), make_batches(tokens[deep:], **batch), views, {}, []
    )


def measure(pair, prompts, kinds=EVERYTHING, layers=LAYERS, partial=None, region="all", **options):
    measurement = Measurement(pair, prompts, AnalysisSettings(region=region), kinds, layers, partial, **options)
    return measurement.run().rows


def assert_close(found, expected, rtol=1e-5):
    assert found.keys() == expected.keys()
    for key, rows in expected.items():
        assert torch.equal(found[key].index, rows.index)
        torch.testing.assert_close(
            found[key].values, rows.values, rtol=rtol, atol=1e-5, msg=lambda text, key=key: key + text
        )


def in_float32(rows):
    return {key: value for key, value in rows.items() if not key.endswith(f"|{ROUNDED_BASE}")}


@pytest.fixture(scope="module")
def pair(pico, tuned_from):
    base = pico("llama")
    return Pair.of_models(base, {"sft": tuned_from(base), "dpo": tuned_from(base, seed=2)}, None)


@pytest.fixture(scope="module")
def measured(pair):
    return measure(pair, prompts_of(token_lists()))


def states_of(model, ids):
    """All layers' states of one prompt alone, by transformers' own accounting of blocks."""
    anatomy, states = Anatomy.of(model), {}
    with watch(anatomy, LAYERS, lambda layer, value: states.__setitem__(layer, value.clone())):
        run_backbone(anatomy, torch.tensor([ids]))
    return states


@pytest.mark.parametrize("model", [0, 1, 2])
def test_rows_are_those_of_each_prompt_alone(pair, measured, model):
    network = list(pair)[model].model
    for prompt in token_lists():
        for layer, states in states_of(network, prompt.input_ids).items():
            pooled = measured[f"pooled|{layer}|{model}"]
            assert torch.allclose(pooled.values[prompt.index], states[0].double().mean(0), rtol=1e-4, atol=1e-6)
            if prompt.index < 4:
                tokens = measured[f"tokens|{layer}|{model}"].values[prompt.index]
                whole = torch.ones(1, len(prompt.input_ids), dtype=torch.bool)
                assert torch.allclose(tokens, columns(TOKENS, Tokens(states, whole))[0], rtol=1e-4, atol=1e-4)


def test_the_lens_compares_each_models_own_predictions(pair, measured):
    """At the last block, those are the models' logits; read here without batches, hooks or anatomy."""
    base, sft = pair.base.model, pair.tuned[0].model
    for prompt in token_lists()[:4]:
        ids = torch.tensor([prompt.input_ids])
        at = lens_positions(torch.ones_like(ids, dtype=torch.bool), 4)[0]
        with torch.inference_mode():
            logits = [model(input_ids=ids).logits[0, at].double().numpy() for model in (base, sft)]
        ours, theirs = (scipy.special.softmax(each, axis=-1) for each in logits)
        divergence, agreement = measured["lens|2|1"].values[prompt.index].tolist()
        assert divergence == pytest.approx(scipy.stats.entropy(ours, theirs, axis=-1).mean(), rel=1e-3)
        assert agreement == (ours.argmax(-1) == theirs.argmax(-1)).mean()


def test_the_final_norm_predicts_what_the_last_block_does(pair, measured):
    assert torch.equal(measured["lens|3|1"].values, measured["lens|2|1"].values)
    alone = measure(pair, prompts_of(token_lists()), frozenset({"pooled", "lens"}), layers=(3,))
    torch.testing.assert_close(alone["lens|3|1"].values, measured["lens|2|1"].values, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_padding_and_batches_never_matter(pair, measured, batch_tokens):
    found = measure(pair, prompts_of(token_lists(), batch_tokens))
    assert_close(in_float32(found), in_float32(measured), rtol=1e-4)
    for layer in LAYERS:  # bfloat16 kernels round by the batch's shape
        ours, theirs = (rows[f"pooled|{layer}|{ROUNDED_BASE}"].values for rows in (found, measured))
        assert float((ours - theirs).norm() / theirs.norm()) < 0.01


def test_what_is_padded_with_never_matters(pair):
    tokens = token_lists()
    zeros, others = (measure(pair, prompts_of(tokens, 10_000, pad_id=pad)) for pad in (0, 299))
    assert_close(others, zeros, rtol=1e-6)


def test_the_order_of_prompts_never_matters(pair, measured):
    tokens = token_lists()
    shuffled = tokens[3::-1] + tokens[:3:-1]
    assert_close(in_float32(measure(pair, prompts_of(shuffled))), in_float32(measured), rtol=1e-4)


@pytest.mark.parametrize("region", ["prompt", "answer"])
def test_a_region_is_pooled_alone(pair, region):
    found = measure(pair, prompts_of(token_lists()), frozenset({"pooled"}), region=region)
    for prompt in token_lists():
        states = states_of(pair.base.model, prompt.input_ids)[1][0].double()
        part = states[: prompt.answer_start] if region == "prompt" else states[prompt.answer_start :]
        assert torch.allclose(found["pooled|1|0"].values[prompt.index], part.mean(0), rtol=1e-4, atol=1e-6)


def test_only_what_is_wanted_is_kept(pair):
    found = measure(pair, prompts_of(token_lists()), frozenset({"pooled"}), layers=(1,))
    assert {key.split("|")[0] for key in found} == {"pooled", "sinks", "view0", "view1"}
    assert {key.split("|")[1] for key in found if "sinks" not in key} == {"1"}


def test_token_level_rows_come_from_the_deep_prompts_only(measured):
    assert measured["tokens|0|0"].index.tolist() == [0, 1, 2, 3]
    assert measured["tokens|0|0"].values.shape == (4, len(TOKENS))
    assert measured["pooled|0|0"].index.tolist() == list(range(10))
    assert measured["view1|0|1"].index.tolist() == list(range(10))


def test_several_tuned_models_are_measured_as_each_alone(pair, measured):
    alone = Pair(pair.base, pair.tuned[1:])
    found = measure(alone, prompts_of(token_lists()))
    alone = {re.sub(r"\|2$", "|1", key): rows for key, rows in measured.items() if not key.endswith("|1")}
    assert_close(found, alone, rtol=1e-6)


def test_pieces_merge_in_any_order(pair, measured, tmp_path):
    whole = measure(pair, prompts_of(token_lists()), partial=tmp_path, save_seconds=0)
    pieces = [load_file(file) for file in tmp_path.glob("*.safetensors")]
    assert len(pieces) > 5
    for seed in range(3):
        store = RowStore()
        for piece in random.Random(seed).sample(pieces, len(pieces)):
            store.restore(piece)
        assert_close(store.finish(), whole, rtol=0)
    assert_close(whole, measured, rtol=0)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("after", [1, 4])
def test_a_pass_that_was_stopped_goes_on_to_the_same_rows(pair, measured, tmp_path, after):
    prompts, heard = prompts_of(token_lists()), []

    def stop(tokens):
        heard.append(tokens)
        if len(heard) == after:
            raise KilledError

    settings = AnalysisSettings()
    with pytest.raises(KilledError):
        Measurement(pair, prompts, settings, EVERYTHING, LAYERS, tmp_path, save_seconds=0).run(stop)
    assert len(list(tmp_path.glob("*.safetensors"))) == after
    again = []
    found = Measurement(pair, prompts, settings, EVERYTHING, LAYERS, tmp_path, save_seconds=0).run(again.append)
    assert_close(found.rows, measured, rtol=0)
    assert sum(again) == total_tokens(prompts)


def test_a_finished_pass_runs_no_model_again(pair, measured, tmp_path):
    measure(pair, prompts_of(token_lists()), partial=tmp_path)
    broken = copy.deepcopy(pair.base.model)
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.nan)
    other = Pair.of_models(broken, {variant.name: broken for variant in pair.tuned}, None)
    assert_close(measure(other, prompts_of(token_lists()), partial=tmp_path), measured, rtol=0)


def test_the_last_piece_is_kept_however_often_pieces_are_saved(pair, measured, tmp_path):
    measure(pair, prompts_of(token_lists()), partial=tmp_path, save_seconds=0)
    assert_close(measure(pair, prompts_of(token_lists()), partial=tmp_path), measured, rtol=0)


def test_a_damaged_piece_is_measured_again(pair, measured, tmp_path):
    measure(pair, prompts_of(token_lists()), partial=tmp_path, save_seconds=0)
    (tmp_path / "000003.safetensors").write_bytes(b"half a file")
    again = Measurement(pair, prompts_of(token_lists()), AnalysisSettings(), EVERYTHING, LAYERS, tmp_path)
    assert_close(again.run().rows, measured, rtol=0)
    assert any("000003.safetensors was damaged: from step 3 on" in note for note in again.notes())


def test_pieces_of_other_prompts_or_another_run_are_refused(pair, tmp_path):
    measure(pair, prompts_of(token_lists()), partial=tmp_path, owner="ours", save_seconds=0)
    others = [TokenizedPrompt(99 if each.index == 3 else each.index, each.input_ids, 1) for each in token_lists()]
    for changed in (
        {"prompts": prompts_of(others), "owner": "ours"},
        {"prompts": prompts_of(token_lists(), batch_tokens=40), "owner": "ours"},
        {"prompts": prompts_of(token_lists()), "owner": "ours", "layers": LAYERS[:-1]},
        {"prompts": prompts_of(token_lists()), "owner": "theirs"},
    ):
        with pytest.raises(MidblockError, match=r"000001.safetensors was kept by another run.*--overwrite"):
            measure(pair, partial=tmp_path, **changed)


@pytest.mark.parametrize("broken", ["base", "sft"])
def test_activations_that_are_not_finite_are_named_with_model_and_layer(pico, broken):
    models = {"base": pico("llama"), "sft": pico("llama")}
    with torch.no_grad():
        models[broken].model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    pair = Pair.of_models(models["base"], {"sft": models["sft"]}, None)
    with pytest.raises(MidblockError, match=rf"{broken}: NaN or Inf in the activations of layer 1"):
        measure(pair, prompts_of(token_lists()))


def test_models_are_left_as_they_were(pico, tuned_from):
    base = pico("llama_tied")
    tuned = tuned_from(base)
    before = [copy.deepcopy(model.state_dict()) for model in (base, tuned)]
    measure(Pair.of_models(base, {"sft": tuned}, None), prompts_of(token_lists()))
    for model, state in zip((base, tuned), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


ROUNDABLE = ("llama_tied", "gpt2", "gemma2", "mixtral", "falcon")


@pytest.mark.parametrize("family", ROUNDABLE)
def test_rounding_puts_the_very_same_parameters_back(family, pico):
    model = pico(family)
    ids = torch.arange(3, 12)[None]
    own = dict(model.named_parameters())
    with torch.inference_mode():
        before = model(input_ids=ids).logits
    anatomy = Anatomy.of(model)
    inside = []
    hooks = [
        child.register_forward_pre_hook(lambda module, args: inside.append([p.dtype for p in model.parameters()]))
        for child in anatomy.blocks[1].children()
    ]
    with rounded(anatomy):
        run_backbone(anatomy, ids)
    for hook in hooks:
        hook.remove()
    # Block 1 is cast while it runs, the rest of the model is itself.
    assert inside[0].count(torch.bfloat16) == len(list(anatomy.blocks[1].parameters()))
    after = dict(model.named_parameters())
    assert after.keys() == own.keys()
    assert all(after[name] is own[name] for name in own)
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, before)


def test_rounding_is_undone_after_an_error_too(pico):
    model = pico("llama")
    anatomy, own = Anatomy.of(model), list(model.parameters())

    def fail(module, args):
        raise KilledError

    hook = anatomy.blocks[1].self_attn.register_forward_pre_hook(fail)
    with pytest.raises(KilledError), rounded(anatomy):
        run_backbone(anatomy, torch.tensor([[3, 4, 5]]))
    hook.remove()
    assert all(now is then for now, then in zip(model.parameters(), own, strict=True))
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())


def test_the_rounded_pass_is_a_model_cast_to_bfloat16(pico, tuned_from):
    """GPT-2 has no floating buffers, so casting a whole copy is the same as casting its weights."""
    base = pico("gpt2")
    found = measure(Pair.of_models(base, {"sft": tuned_from(base)}, None), prompts_of(token_lists(), batch_tokens=1))
    cast = copy.deepcopy(base).to(torch.bfloat16)
    for prompt in token_lists()[:4]:
        for layer, states in states_of(cast, prompt.input_ids).items():
            assert states.dtype == torch.bfloat16
            rounded = found[f"pooled|{layer}|{ROUNDED_BASE}"].values[prompt.index]
            assert torch.equal(rounded, states[0].double().mean(0)), layer


def test_of_many_prompts_some_batches_are_rounded_and_the_floor_is_not_taken_for_lost(pico, tuned_from, monkeypatch):
    """Every second batch here: what was left out on purpose is no failure, and what was rounded is what it was."""
    base = pico("gpt2")
    pair = Pair.of_models(base, {"sft": tuned_from(base)}, None)
    prompts = prompts_of(token_lists(), batch_tokens=1)
    whole = measure(pair, prompts)
    count = sum(len(batch.index) for batch in prompts.deep)
    monkeypatch.setattr("midblock.analysis.prompts.FLOOR_PROMPTS", count // 2)
    again = prompts_of(token_lists(), batch_tokens=1)
    kept = sorted(index for batch in again.deep[::2] for index in batch.index.tolist())
    assert sorted(again.rounded) == kept
    assert len(kept) < count
    found = measure(pair, again)
    for layer in LAYERS:
        key = f"pooled|{layer}|{ROUNDED_BASE}"
        assert found[key].index.tolist() == kept
        chosen = torch.isin(whole[key].index, found[key].index)
        assert torch.equal(found[key].values, whole[key].values[chosen])


def test_the_rounded_pass_differs_from_the_whole_one_a_little(measured):
    for layer in LAYERS:
        base, rounded = measured[f"pooled|{layer}|0"], measured[f"pooled|{layer}|{ROUNDED_BASE}"]
        gap = (rounded.values - base.values[rounded.index]).norm() / rounded.values.norm()
        assert 1e-5 < float(gap) < 0.1
    assert (
        0
        < float(measured[f"lens|2|{ROUNDED_BASE}"].values[:, 0].mean())
        < float(measured["lens|2|1"].values[:, 0].mean())
    )


def test_a_bfloat16_base_is_compared_in_float32(pico, tuned_from):
    base = pico("llama").to(torch.bfloat16)
    own = list(base.parameters())
    found = measure(Pair.of_models(base, {"sft": tuned_from(base)}, None), prompts_of(token_lists()))
    assert all(now is then for now, then in zip(base.parameters(), own, strict=True))
    states = states_of(copy.deepcopy(base).float(), token_lists()[0].input_ids)[1][0]
    rounded = found[f"pooled|1|{ROUNDED_BASE}"].values[0]
    assert torch.allclose(rounded, states.double().mean(0), rtol=1e-3, atol=1e-4)
    assert not torch.equal(rounded, found["pooled|1|0"].values[0])


def test_progress_hears_of_every_token(pair):
    prompts, heard = prompts_of(token_lists()), []
    Measurement(pair, prompts, AnalysisSettings(), EVERYTHING, LAYERS).run(heard.append)
    assert sum(heard) == total_tokens(prompts)
    padded = [batch.input_ids.numel() for group in (prompts.deep, prompts.pooled, *prompts.views) for batch in group]
    assert heard == padded


LINEAR = {
    "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 16,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}  # fmt: skip
# Families with buffers of a floating type, or with parameters that stay in float32 whatever the rest is loaded in.
STATEFUL = {
    "minimax": ("MiniMaxConfig", LINEAR),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
            "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
            "moe_intermediate_size": 16, "first_k_dense_replace": 1,
        },
    ),
    "falcon_h1": (
        "FalconH1Config",
        {"head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
         "mamba_n_groups": 1, "mamba_expand": 1},
    ),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 8}),
}  # fmt: skip
SHAPE = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.mark.parametrize("family", STATEFUL)
def test_the_rounded_pass_is_what_transformers_loads_in_bfloat16(family, tmp_path, tuned_from):
    name, settings = STATEFUL[family]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**SHAPE, **settings})
    base = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    base.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    own = {**dict(base.named_parameters()), **dict(base.named_buffers())}
    found = measure(Pair.of_models(base, {"sft": tuned_from(base)}, None), prompts_of(token_lists(), batch_tokens=1))
    for prompt in token_lists()[:4]:
        for layer, states in states_of(loaded, prompt.input_ids).items():
            rounded = found[f"pooled|{layer}|{ROUNDED_BASE}"].values[prompt.index]
            assert torch.equal(rounded, states[0].double().mean(0)), layer
    now = {**dict(base.named_parameters()), **dict(base.named_buffers())}
    assert all(now[name] is own[name] for name in own)


class OnlyFloat32(torch.nn.Module):
    """Stands around a projection and takes float32 alone, as a kernel of its own would."""

    def __init__(self, inner, error):
        super().__init__()
        self.inner, self.error = inner, error

    def forward(self, states):
        if states.dtype != torch.float32:
            raise self.error
        return self.inner(states)


@pytest.mark.parametrize("error", [RuntimeError("no kernel for BFloat16.\nsecond line"), TypeError("no bfloat16")])
def test_a_base_that_cannot_run_rounded_costs_the_floor_alone(pico, tuned_from, error):
    base, tuned = pico("llama"), tuned_from(pico("llama"))
    plain = Measurement(Pair.of_models(base, {"sft": tuned}, None), prompts_of(token_lists()), AnalysisSettings(),
                        EVERYTHING - {"floor"}, LAYERS)  # fmt: skip
    expected = plain.run().rows
    assert plain.notes() == []
    block = base.model.layers[1].mlp
    block.up_proj = OnlyFloat32(block.up_proj, error)
    made = Measurement(
        Pair.of_models(base, {"sft": tuned}, None), prompts_of(token_lists()), AnalysisSettings(), EVERYTHING, LAYERS
    )
    found = made.run().rows
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key].values, expected[key].values) for key in expected)
    assert made.notes() == [f"The precision floor could not be had: {str(error).splitlines()[0].rstrip('.')}."]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none left"), MemoryError(), KeyboardInterrupt()])
def test_what_is_no_matter_of_precision_ends_the_run(pico, tuned_from, error):
    base = pico("llama")
    block = base.model.layers[1].mlp
    block.up_proj = OnlyFloat32(block.up_proj, error)
    with pytest.raises(type(error)):
        measure(Pair.of_models(base, {"sft": tuned_from(pico("llama"))}, None), prompts_of(token_lists()))
    assert all(value.dtype == torch.float32 for value in base.parameters())
