"""Modules are exchanged by reference: to the bit what copied weights give, and undone to the bit."""

import copy

import pytest
import torch

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.interventions.swap.exchange import check_blocks_alike, exchanged

IDS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


@pytest.fixture
def two(family, pico, tuned_from):
    host = pico(family)
    return host, tuned_from(host)


def test_nothing_exchanged_is_the_host_and_everything_the_donor(two):
    host, donor = two
    before, theirs = logits(host), logits(donor)
    assert not torch.equal(before, theirs)
    with exchanged(host, donor) as count:
        assert count == 0
        assert torch.equal(logits(host), before)
    with exchanged(host, donor, range(3), head=True, embedding=True):
        assert torch.equal(logits(host), theirs)
        assert torch.equal(logits(donor), theirs)
    assert torch.equal(logits(host), before)


def test_a_part_is_its_weights_copied(two):
    host, donor = two
    names = Anatomy.of(host).names
    weights = donor.state_dict()

    def copied(*prefixes):
        model = copy.deepcopy(host)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())  # no longer tied
        chosen = {name: value for name, value in weights.items() if name.startswith(prefixes)}
        assert chosen
        model.load_state_dict(chosen, strict=False)
        return logits(model)

    for block in range(3):
        with exchanged(host, donor, [block]) as count:
            assert count == 1
            assert torch.equal(logits(host), copied(f"{names['blocks']}.{block}."))
    with exchanged(host, donor, head=True) as count:
        assert count == 2
        assert torch.equal(logits(host), copied(names["final_norm"] + ".", names["head"] + "."))
    within = (names["blocks"], names["final_norm"], names["head"])
    before_blocks = tuple(name for name in weights if not name.startswith(within))
    with exchanged(host, donor, embedding=True):
        assert torch.equal(logits(host), copied(*before_blocks))


def test_everything_is_put_back_whatever_happens(two):
    host, donor = two
    before = [(name, id(part)) for name, part in (*host.named_modules(), *host.named_parameters())]
    theirs = [(name, id(part)) for name, part in (*donor.named_modules(), *donor.named_parameters())]
    ours, other = logits(host), logits(donor)
    with pytest.raises(KeyboardInterrupt), exchanged(host, donor, [0, 2], head=True, embedding=True):
        raise KeyboardInterrupt
    assert before == [(name, id(part)) for name, part in (*host.named_modules(), *host.named_parameters())]
    assert theirs == [(name, id(part)) for name, part in (*donor.named_modules(), *donor.named_parameters())]
    assert torch.equal(logits(host), ours)
    assert torch.equal(logits(donor), other)


@pytest.mark.parametrize("name", ["llama_tied", "gpt2"])
def test_a_tied_head_stays_with_its_model(pico, tuned_from, name):
    host = pico(name)
    donor = tuned_from(host)
    own, head = host.get_input_embeddings(), host.lm_head
    with exchanged(host, donor, embedding=True):
        assert host.get_input_embeddings() is donor.get_input_embeddings()
        assert host.lm_head is head
        assert host.lm_head.weight is own.weight
    with exchanged(host, donor, head=True):
        assert host.get_input_embeddings() is own
        assert host.lm_head is donor.lm_head
    for model in two_of(host, donor):
        assert model.lm_head.weight is model.get_input_embeddings().weight


def two_of(host, donor):
    assert host.lm_head is not donor.lm_head
    return host, donor


@pytest.mark.parametrize("kind", ["gemma3", "mistral3"])
def test_a_decoder_alone_lends_to_the_one_in_a_multimodal_model(kind, wrapped, tuned_from):
    whole, alone = wrapped(kind)
    tuned = tuned_from(alone)
    before, after = logits(alone), logits(tuned)
    for host, donor, first, second in ((whole, tuned, before, after), (tuned, whole, after, before)):
        assert torch.equal(logits(host), first)
        with exchanged(host, donor, range(3), head=True, embedding=True) as count:
            assert count == 6
            assert torch.equal(logits(host), second)
        with exchanged(host, donor, [1]):
            assert not torch.equal(logits(host), first)
        assert torch.equal(logits(host), first)


def test_parts_that_do_not_fit_are_named(pico):
    host = pico("llama")
    ours = logits(host)
    cases = [
        (pico("llama", num_hidden_layers=2), r"^the host has 3 blocks, the donor 2$"),
        (pico("gpt2"), r"^blocks: model\.layers in one model, transformer\.h in the other .*one architecture"),
        (pico("qwen3"), r"^model\.layers\.1\.self_attn\.k_norm\.weight is in one of the models only"),
        (
            pico("llama", intermediate_size=64),
            r"^model\.layers\.1\.mlp\.gate_proj\.weight is \[48, 32\] in one model and \[64, 32\] in the other",
        ),
        (
            pico("llama").bfloat16(),
            r"^model\.layers\.1\.self_attn\.q_proj\.weight is float32 in one model and bfloat16 in .*--dtype",
        ),
    ]
    for donor, message in cases:
        with pytest.raises(MidblockError, match=message), exchanged(host, donor, [1]):
            pass
    for donor, _ in cases[1:]:
        with pytest.raises(MidblockError):
            check_blocks_alike(Anatomy.of(host), Anatomy.of(donor))
    for beyond in (3, -1):
        with pytest.raises(MidblockError, match=rf"^block {beyond} is not there; the models have 0 to 2"):  # noqa: SIM117
            with exchanged(host, pico("llama"), [1, beyond]):
                pass
    assert torch.equal(logits(host), ours)


def test_attention_that_another_kernel_would_misread(pico, tuned_from):
    """A host whose kernel is causal by itself makes no mask: a block that wants one would read the future."""
    host = pico("llama")
    donor = tuned_from(host)
    donor.set_attn_implementation("eager")
    with pytest.raises(MidblockError, match=r"attention runs as sdpa in one model and as eager in the other"):  # noqa: SIM117
        with exchanged(host, donor, [1]):
            pass


def test_a_larger_vocabulary_is_exchanged_but_for_its_ends(pico, tuned_from):
    host = pico("llama")
    donor = tuned_from(host)
    donor.resize_token_embeddings(305)
    with exchanged(host, donor, range(3)) as count:
        assert count == 3
    for part, named in ({"head": True}, "lm_head.weight"), ({"embedding": True}, "model.embed_tokens.weight"):
        with pytest.raises(MidblockError, match=rf"^{named} is \[300, 32\] in one model and \[305, 32\] in"):  # noqa: SIM117
            with exchanged(host, donor, **part):
                pass
