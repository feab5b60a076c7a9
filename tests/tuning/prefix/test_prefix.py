"""The frozen prefix changes what is computed, never what comes out: every family against its plain model."""

import contextlib

import pytest
import torch
import torch.distributed as dist
from torch import nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.trace.residual import watch
from midblock.tuning.prefix.prefix import FrozenPrefix, reason_not_exact
from midblock.tuning.prefix.store import PrefixStore

BLOCKS, WIDTH = 3, 32
LENGTHS = [7, 4, 9, 1, 9, 6]
NO_DROPOUT = {
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "opt": {"dropout": 0.0, "attention_dropout": 0.0},
}
# Experts get padding's tokens too, so junk instead of zeros there changes how real tokens are grouped in a product.
MOE = ("mixtral", "olmoe", "qwen3_moe")

generator = torch.Generator().manual_seed(3)
EXAMPLES = [torch.randint(3, 300, (length,), generator=generator) for length in LENGTHS]


def batch(examples):
    """Token ids and mask, padded on the right."""
    ids = nn.utils.rnn.pad_sequence([EXAMPLES[example] for example in examples], batch_first=True)
    lengths = torch.tensor([LENGTHS[example] for example in examples])
    return ids, (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()


def make(pico, family, first, **changes):
    """A model in training mode of which blocks from `first` on, the final norm and an untied head are tuned."""
    model = pico(family, **NO_DROPOUT.get(family, {}), **changes).train()
    anatomy = Anatomy.of(model)
    model.requires_grad_(False)
    for part in [*anatomy.blocks[first:], anatomy.final_norm]:
        part.requires_grad_(True)
    return model, anatomy


def store_in(folder, **changes):
    options = {"lengths": LENGTHS, "width": WIDTH, "dtype": torch.float32, "key": "pico", **changes}
    return PrefixStore.open(folder, **options)


def step(model, anatomy, examples, serving=None, use_mask=True):
    """Residual stream of real tokens from the last block on, a loss, and every gradient."""
    ids, mask = batch(examples)
    model.zero_grad()
    seen = {}
    layers = [len(anatomy.blocks) - 1, len(anatomy.blocks)]
    with watch(anatomy, layers, seen.__setitem__), serving or contextlib.nullcontext():
        out = anatomy.backbone(input_ids=ids, attention_mask=mask if use_mask else None, use_cache=False)
    real = mask.bool()
    logits = anatomy.logits(out.last_hidden_state)[:, :-1][real[:, 1:]]
    loss = nn.functional.cross_entropy(logits, ids[:, 1:][real[:, 1:]], reduction="sum")
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return {layer: states.detach()[real] for layer, states in seen.items()}, loss.detach(), gradients


def same(got, expected, exactly=True):
    tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-5, "atol": 1e-6}
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)
    assert expected[2], "something was trained"


def count_inner_calls(anatomy, first):
    """How often each block below `first` really computes: real forward hooks on its parts, not on the block itself."""
    counts = [0] * first

    def counted(position):
        def hook(*_):
            counts[position] += 1

        return hook

    for position in range(first):
        part = next(child for name, child in anatomy.blocks[position].named_children() if "att" in name)
        part.register_forward_hook(counted(position))
    return counts


@pytest.mark.parametrize("first", [1, 2, 3])
def test_prefix_equals_the_plain_model_without_cache_cold_and_warm(family, pico, tmp_path, first):
    model, anatomy = make(pico, family, first)
    examples = [0, 1, 2, 3]
    plain = step(model, anatomy, examples)
    _, mask = batch(examples)
    index = torch.tensor(examples)

    uncached = FrozenPrefix(anatomy, first, None)
    with uncached.installed():
        same(step(model, anatomy, examples, uncached.serving(index, mask)), plain)

    cached = FrozenPrefix(anatomy, first, store_in(tmp_path))
    with cached.installed():
        same(step(model, anatomy, examples, cached.serving(index, mask)), plain)
        counts = count_inner_calls(anatomy, first)
        same(step(model, anatomy, examples, cached.serving(index, mask)), plain, exactly=family not in MOE)
        assert counts == [0] * first
    assert (cached.computed, cached.served) == (4, 4)


def test_experts_too_are_bitwise_the_same_where_nothing_is_padded(pico, tmp_path):
    for family in MOE:
        model, anatomy = make(pico, family, 2)
        plain = step(model, anatomy, [2, 4])
        prefix = FrozenPrefix(anatomy, 2, store_in(tmp_path / family))
        _, mask = batch([2, 4])
        with prefix.installed():
            for _ in ("cold", "warm"):
                same(step(model, anatomy, [2, 4], prefix.serving(torch.tensor([2, 4]), mask)), plain)


def test_other_batches_of_stored_examples_agree_to_rounding(family, pico, tmp_path):
    model, anatomy = make(pico, family, 2)
    prefix = FrozenPrefix(anatomy, 2, store_in(tmp_path))
    with prefix.installed():
        for examples in ([0, 2], [1, 5], [4, 3]):
            step(model, anatomy, examples, prefix.serving(torch.tensor(examples), batch(examples)[1]))
        counts = count_inner_calls(anatomy, 2)
        for examples in ([3, 0, 1], [5, 2, 4], [1]):
            got = step(model, anatomy, examples, prefix.serving(torch.tensor(examples), batch(examples)[1]))
            assert counts == [0, 0]
            same(got, step(model, anatomy, examples), exactly=False)
            counts[:] = [0, 0]


def test_a_batch_of_which_one_example_is_missing_is_computed(pico, tmp_path):
    model, anatomy = make(pico, "llama", 2)
    store = store_in(tmp_path)
    prefix = FrozenPrefix(anatomy, 2, store)
    with prefix.installed():
        step(model, anatomy, [0], prefix.serving(torch.tensor([0]), batch([0])[1]))
        same(
            step(model, anatomy, [0, 2], prefix.serving(torch.tensor([0, 2]), batch([0, 2])[1])),
            step(model, anatomy, [0, 2]),
        )
    assert (prefix.computed, prefix.served) == (3, 0)
    assert store.has(torch.tensor([0, 2]))


@pytest.mark.parametrize("family", ["llama", "falcon_rw"])
def test_after_a_restart_one_block_runs_once(pico, tmp_path, family):
    """Only a run tells a fresh process whether this family's blocks return a tuple."""
    model, anatomy = make(pico, family, 2)
    plain = step(model, anatomy, [0, 1])
    _, mask = batch([0, 1])
    index = torch.tensor([0, 1])
    for _ in ("first process", "second process"):
        prefix = FrozenPrefix(anatomy, 2, store_in(tmp_path))
        with prefix.installed():
            counts = count_inner_calls(anatomy, 2)
            same(step(model, anatomy, [0, 1], prefix.serving(index, mask)), plain)
    assert counts == [1, 0]
    with prefix.installed():
        same(step(model, anatomy, [0, 1], prefix.serving(index, mask)), plain)
    assert counts == [1, 0]


@pytest.mark.parametrize("cached", [False, True])
def test_no_graph_reaches_below_the_prefix(family, pico, tmp_path, cached):
    model, anatomy = make(pico, family, 2)
    # As transformers does for adapters under gradient checkpointing: the embedding's output asks for a gradient.
    handle = anatomy.embedding.register_forward_hook(lambda module, args, out: out.requires_grad_(True))
    entering = []

    def keep(module, args, kwargs):
        entering.append(args[0] if args else kwargs["hidden_states"])

    anatomy.blocks[2].register_forward_pre_hook(keep, with_kwargs=True)
    prefix = FrozenPrefix(anatomy, 2, store_in(tmp_path) if cached else None)
    with prefix.installed():
        for _ in ("cold", "warm"):
            step(model, anatomy, [0, 1], prefix.serving(torch.tensor([0, 1]), batch([0, 1])[1]))
    assert [states.requires_grad for states in entering] == [False, False]
    step(model, anatomy, [0, 1])
    assert entering[-1].requires_grad, "the plain model has one"
    handle.remove()


def fingerprint(model):
    return {
        name: (sorted(vars(module)), vars(module).get("forward"), len(module._forward_hooks))
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_the_model_is_what_it_was(family, pico, tmp_path, fails):
    model, anatomy = make(pico, family, 2)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain, before = step(model, anatomy, [0, 2]), fingerprint(model)
    prefix = FrozenPrefix(anatomy, 2, store_in(tmp_path))
    serving = prefix.serving(torch.tensor([0, 2]), batch([0, 2])[1])
    with contextlib.suppress(KeyboardInterrupt), prefix.installed() as touched:
        assert touched == 2
        assert fingerprint(model) != before
        if fails:
            with prefix.serving(torch.tensor([0, 2]), batch([0, 2])[1]):
                raise KeyboardInterrupt
        step(model, anatomy, [0, 2], serving)
    assert fingerprint(model) == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    same(step(model, anatomy, [0, 2]), plain)


def test_a_forward_that_was_already_replaced_comes_back(pico):
    model, anatomy = make(pico, "llama", 1)
    block = anatomy.blocks[0]
    original, calls = block.forward, []

    def other(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    block.forward = other
    prefix = FrozenPrefix(anatomy, 1, None)
    with prefix.installed():
        step(model, anatomy, [0], prefix.serving(torch.tensor([0]), batch([0])[1]))
    assert block.forward is other
    assert calls


def test_without_serving_the_model_generates_as_always(family, pico, tmp_path):
    model, anatomy = make(pico, family, 2)
    model.eval()
    ids, mask = batch([2, 4])
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, **options)
    prefix = FrozenPrefix(anatomy, 2, store_in(tmp_path))
    with prefix.installed():
        step(model, anatomy, [2, 4], prefix.serving(torch.tensor([2, 4]), mask))
        assert torch.equal(model.generate(ids, **options), expected)


def test_a_prefix_of_no_blocks_does_nothing(pico, tmp_path):
    model, anatomy = make(pico, "llama", 0)
    model.requires_grad_(True)
    plain, before = step(model, anatomy, [0, 1]), fingerprint(model)
    prefix = FrozenPrefix(anatomy, 0, store_in(tmp_path))
    with prefix.installed() as touched:
        assert touched == 0
        assert fingerprint(model) == before
        same(step(model, anatomy, [0, 1], prefix.serving(torch.tensor([0, 1]), batch([0, 1])[1])), plain)
    assert not prefix.store.whole.any()
    assert reason_not_exact(anatomy, 0) is None


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])  # a LayerNorm saves its input for the backward pass
@pytest.mark.parametrize("reference", [torch.no_grad, torch.inference_mode])
def test_two_passes_over_one_batch(family, pico, tmp_path, reference):
    """A reference pass first, then the one that learns; the second finds what the first computed."""
    model, anatomy = make(pico, family, 2)
    plain = step(model, anatomy, [0, 1])
    ids, mask = batch([0, 1])
    for store in (None, store_in(tmp_path)):
        prefix = FrozenPrefix(anatomy, 2, store)
        with prefix.installed():
            counts = count_inner_calls(anatomy, 2)
            with prefix.serving(torch.tensor([0, 1]), mask):
                with reference():
                    anatomy.backbone(input_ids=ids, attention_mask=mask, use_cache=False)
                same(step(model, anatomy, [0, 1]), plain)
        assert counts == ([1, 1] if store else [2, 2])


@pytest.mark.parametrize("first", [1, 2])
def test_under_gradient_checkpointing(family, pico, tmp_path, first):
    model, anatomy = make(pico, family, first)
    plain = step(model, anatomy, [0, 1, 2])
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    recomputed = count_inner_calls(anatomy, len(anatomy))
    _, mask = batch([0, 1, 2])
    index = torch.tensor([0, 1, 2])
    for store in (None, store_in(tmp_path)):
        prefix = FrozenPrefix(anatomy, first, store)
        with prefix.installed():
            for visit in ("cold", "warm"):
                recomputed[:] = [0] * len(anatomy)
                got = step(model, anatomy, [0, 1, 2], prefix.serving(index, mask))
                same(got, plain, exactly=family not in MOE)
                below = 0 if store and visit == "warm" else 1
                assert recomputed == [below] * first + [2] * (len(anatomy) - first), "the backward pass runs them again"


def test_with_adapters_above_the_prefix(family, pico, tmp_path):
    peft = pytest.importorskip("peft")
    base = pico(family, **NO_DROPOUT.get(family, {}))
    linear = (nn.Linear, type(Anatomy.of(pico("gpt2")).blocks[0].attn.c_attn))
    names = [
        f"{Anatomy.of(base).names['blocks']}.2.{name}"
        for name, module in Anatomy.of(base).blocks[2].named_modules()
        if isinstance(module, linear)
    ]
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config).train()
    anatomy = Anatomy.of(model)
    plain = step(model, anatomy, [0, 1])
    assert all("lora" in name for name in plain[2])
    ids, mask = batch([0, 1])
    prefix = FrozenPrefix(anatomy, 2, store_in(tmp_path))
    with prefix.installed():
        for _ in ("cold", "warm"):
            serving = prefix.serving(torch.tensor([0, 1]), mask)
            with serving:
                with torch.no_grad(), model.disable_adapter():
                    bare = anatomy.backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
                same(step(model, anatomy, [0, 1]), plain, exactly=family not in MOE)
    with torch.no_grad(), model.disable_adapter():
        expected = anatomy.backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    torch.testing.assert_close(bare[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-6)


def test_under_distributed_data_parallel(pico, tmp_path):
    model, anatomy = make(pico, "llama", 2)
    ids, mask = batch([0, 1])
    labels = ids.masked_fill(mask == 0, -100)

    def gradients(module):
        model.zero_grad()
        module(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

    # `requires_grad` of the untied head is off, so DDP averages blocks 2… and the final norm.
    plain = gradients(model)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        prefix = FrozenPrefix(anatomy, 2, store_in(tmp_path / "store"))
        with prefix.installed():
            for _ in ("cold", "warm"):
                with prefix.serving(torch.tensor([0, 1]), mask):
                    torch.testing.assert_close(gradients(wrapped), plain, rtol=0, atol=0)
        assert prefix.served == 2
    finally:
        dist.destroy_process_group()


def test_in_bfloat16(pico, tmp_path):
    model, anatomy = make(pico, "llama", 2)
    model.to(torch.bfloat16)
    plain = step(model, anatomy, [0, 2])
    prefix = FrozenPrefix(anatomy, 2, store_in(tmp_path, dtype=torch.bfloat16))
    with prefix.installed():
        for _ in ("cold", "warm"):
            same(step(model, anatomy, [0, 2], prefix.serving(torch.tensor([0, 2]), batch([0, 2])[1])), plain)


def test_states_do_not_depend_on_whether_the_model_was_given_the_mask(family, pico, tmp_path):
    """Padding on the right is never looked at, so a backbone called without a mask fills the same store."""
    model, anatomy = make(pico, family, 2)
    examples, mask = [0, 1, 3], batch([0, 1, 3])[1]
    stores = [store_in(tmp_path / name) for name in ("with", "without")]
    for store, use_mask in zip(stores, (True, False), strict=True):
        prefix = FrozenPrefix(anatomy, 2, store)
        with prefix.installed():
            step(model, anatomy, examples, prefix.serving(torch.tensor(examples), mask), use_mask)
    torch.testing.assert_close(stores[0].states, stores[1].states, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "changes", "first", "word"),
    [
        ("llama", {"attention_dropout": 0.1}, 1, "attention_dropout is 0.1 in layers.0"),
        ("phi3", {"resid_pdrop": 0.1}, 1, "dropout is 0.1 in layers.0"),
        ("gpt2", {"resid_pdrop": 0.0, "attn_pdrop": 0.0}, 1, "dropout is 0.1 in drop"),
        ("gpt2", {"resid_pdrop": 0.0, "embd_pdrop": 0.0}, 1, "in h.0.attn"),
        ("gpt2", {"attn_pdrop": 0.0, "embd_pdrop": 0.0}, 1, "in h.0"),
        ("gpt_neox", {"hidden_dropout": 0.1}, 1, "emb_dropout"),
        ("gpt_neox", {"attention_dropout": 0.1}, 1, "attention_dropout is 0.1"),
        ("falcon", {"hidden_dropout": 0.1}, 1, "hidden_dropout is 0.1"),
        ("falcon_rw", {"attention_dropout": 0.1}, 1, "dropout is 0.1"),
        ("bloom", {"hidden_dropout": 0.1}, 1, "hidden_dropout is 0.1"),
        ("bloom", {"attention_dropout": 0.1}, 1, "dropout is 0.1"),
        ("opt", {"attention_dropout": 0.0}, 1, "dropout is 0.1"),
        ("opt", {"dropout": 0.0, "attention_dropout": 0.1}, 1, "dropout is 0.1 in layers.0.self_attn"),
        ("opt", {"dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.2}, 1, "layerdrop is 0.2 in the decoder"),
        ("mixtral", {"router_jitter_noise": 0.1}, 1, "jitter_noise is 0.1"),
        ("mixtral", {"output_router_logits": True}, 1, "output_router_logits"),
        ("olmoe", {"output_router_logits": True}, 1, "output_router_logits"),
    ],
    ids=str,
)
def test_what_forbids_keeping_the_output(pico, tmp_path, family, changes, first, word):
    model = pico(family, **changes).requires_grad_(False)
    anatomy = Anatomy.of(model)
    assert word in reason_not_exact(anatomy, first)
    with (
        pytest.raises(MidblockError, match="cannot be cached"),
        FrozenPrefix(anatomy, first, store_in(tmp_path)).installed(),
    ):
        pass
    with FrozenPrefix(anatomy, first, None).installed():  # without a graph it may run all the same
        pass


NOISES = [
    ("llama", {"attention_dropout": 0.5}),
    ("phi3", {"resid_pdrop": 0.5}),
    ("gpt2", {}),
    ("gpt_neox", {"hidden_dropout": 0.5}),
    ("gpt_neox", {"attention_dropout": 0.5}),
    ("falcon", {"hidden_dropout": 0.5}),
    ("falcon_rw", {"attention_dropout": 0.5}),
    ("bloom", {"attention_dropout": 0.5}),
    ("opt", {}),
    ("mixtral", {"router_jitter_noise": 0.5}),
]


@pytest.mark.parametrize("options", NOISES, ids=str)
def test_a_prefix_that_repeats_itself_not_is_one_with_a_reason(pico, options):
    """The other way round: these really put out something else on a second visit, and the plain configs do not."""
    family, changes = options
    for noisy, model in (
        (True, pico(family, **changes).train()),
        (False, pico(family, **NO_DROPOUT.get(family, {})).train()),
    ):
        anatomy = Anatomy.of(model.requires_grad_(False))
        seen = []
        for _ in range(2):
            with watch(anatomy, [0], lambda layer, states, seen=seen: seen.append(states.clone())):
                anatomy.backbone(input_ids=EXAMPLES[2][None], use_cache=False)
        assert torch.equal(*seen) is not noisy
        assert (reason_not_exact(anatomy, 1) is not None) is noisy


def test_every_family_without_dropout_may_be_cached(family, pico):
    for first in range(BLOCKS + 1):
        _, anatomy = make(pico, family, first)
        assert reason_not_exact(anatomy, first) is None
    assert reason_not_exact(anatomy, 3) is None


def test_dropout_above_the_prefix_is_no_reason(pico):
    model = pico("phi3", resid_pdrop=0.0).requires_grad_(False)
    anatomy = Anatomy.of(model)
    anatomy.blocks[2].resid_mlp_dropout.p = 0.1
    assert reason_not_exact(anatomy, 2) is None
    assert "layers.2" in reason_not_exact(anatomy, 3)


def test_positions_that_depend_on_the_batchs_length(pico):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    anatomy = Anatomy.of(pico("llama", rope_parameters=rope).requires_grad_(False))
    assert "dynamic" in reason_not_exact(anatomy, 1)
    assert "dynamic" in reason_not_exact(anatomy, 1, longest=257)
    assert reason_not_exact(anatomy, 1, longest=256) is None


@pytest.mark.parametrize("part", ["embedding", "block", "positions"])
def test_what_is_trainable_is_no_prefix(pico, part):
    _, anatomy = make(pico, "gpt2", 2)
    parts = {"embedding": anatomy.embedding, "block": anatomy.blocks[1].ln_1, "positions": anatomy.backbone.wpe}
    parts[part].requires_grad_(True)
    assert "is trainable" in reason_not_exact(anatomy, 2)
    with pytest.raises(MidblockError, match="is trainable"), FrozenPrefix(anatomy, 2, None).installed():
        pass


def test_a_tied_head_that_is_tuned_is_an_embedding_that_is(pico):
    _, anatomy = make(pico, "llama_tied", 2)
    anatomy.head.requires_grad_(True)
    assert "embed_tokens.weight is trainable" in reason_not_exact(anatomy, 2)


def test_a_prefix_the_model_does_not_have(pico):
    anatomy = Anatomy.of(pico("llama"))
    for first in (-1, BLOCKS + 1):
        with pytest.raises(MidblockError, match="the model has 3"):
            FrozenPrefix(anatomy, first, None)


def test_serving_that_served_nothing_is_an_error(pico):
    model, anatomy = make(pico, "llama", 2)
    prefix = FrozenPrefix(anatomy, 2, None)
    with pytest.raises(MidblockError, match="never went through"):  # not installed
        step(model, anatomy, [0], prefix.serving(torch.tensor([0]), batch([0])[1]))


def test_another_batch_than_the_one_announced_is_refused(pico, tmp_path):
    model, anatomy = make(pico, "llama", 2)
    prefix = FrozenPrefix(anatomy, 2, store_in(tmp_path))
    index, mask = torch.tensor([0, 1]), batch([0, 1])[1]
    with prefix.installed():
        with pytest.raises(MidblockError, match="its mask says otherwise"):
            step(model, anatomy, [0, 1], prefix.serving(index, mask.flip(1)))
        step(model, anatomy, [0, 1], prefix.serving(index, mask))
        with pytest.raises(ValueError, match="the batch it was given"):
            step(model, anatomy, [2], prefix.serving(index, mask))
