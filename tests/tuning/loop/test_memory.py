"""The estimate of memory: exact where it can be, against real tensors; growing with what it depends on elsewhere."""

import math

import pytest
import torch

from midblock.base import LayerPlan
from midblock.checkpoints import LoadSettings, open_checkpoint
from midblock.tuning.loop.memory import estimate_memory
from midblock.tuning.loop.scoring import LOGIT_BYTES
from midblock.tuning.loop.tune_settings import TuneSettings
from midblock.tuning.place.prepared import prepare

IDS = torch.tensor([[5, 9, 120, 33, 7, 250, 41, 8, 99, 17]])


def ready(llama, layers="010", dtype="float32", **options):
    settings = TuneSettings(layers=layers, **options)
    plan = LayerPlan.parse(layers, 3)
    return prepare(open_checkpoint(str(llama)), plan, settings, LoadSettings(dtype=dtype, device="cpu")), settings


def estimated(llama, longest=20, shards=1, **options):
    return estimate_memory(*ready(llama, **options), longest, shards=shards)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "options",
    [
        {"lora_r": 4},
        {"lora_r": 4, "layers": "all", "target_modules": "all", "use_dora": True},
        {"method": "full"},
        {"method": "full", "also": ("embedding", "head")},
    ],
)
def test_weights_gradients_and_optimizer_are_those_of_a_real_step(llama, dtype, options):
    prepared, settings = ready(llama, dtype=dtype, **options)
    memory = estimate_memory(prepared, settings, 20)
    trained = [value for value in prepared.model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    prepared.model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert memory["weights"] == sum(value.nbytes for value in prepared.model.parameters())
    assert memory["gradients"] == sum(value.grad.nbytes for value in trained)
    moments = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    assert memory["optimizer"] == sum(value.nbytes for value in moments)


def test_by_hand(llama):
    prepared, settings = ready(llama, lora_r=4, target_modules="q_proj")
    memory = estimate_memory(prepared, settings, 20, anchor_bytes=123, cache_bytes=456)
    assert memory["gradients"] == 4 * (4 * 32 + 32 * 4)
    assert memory["optimizer"] == 2 * memory["gradients"]
    assert memory["weights"] == 4 * (prepared.total_parameters + 256)
    assert (memory["anchor"], memory["prefix_cache_disk"]) == (123, 456)
    # 4 examples of 20 tokens, 300 logits in float32, in three copies
    assert memory["logits"] == 4 * 20 * 300 * 4 * 3


def test_tied_weights_lie_in_memory_once(pico, tokenizer, tmp_path):
    for name in ("llama", "llama_tied"):
        pico(name).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    free, tied = (estimated(tmp_path / name, lora_r=4)["weights"] for name in ("llama", "llama_tied"))
    assert free - tied == 300 * 32 * 4


def test_activations_grow_with_the_blocks_that_have_a_graph(llama):
    top, middle, bottom = (estimated(llama, layers=layers)["activations"] for layers in ("001", "010", "100"))
    assert (middle, bottom) == (2 * top, 3 * top)


def test_activations_and_logits_grow_with_the_tokens(llama):
    once, twice = estimated(llama, longest=20), estimated(llama, longest=40)
    wide = estimated(llama, longest=20, per_device_train_batch_size=8)
    for part in ("activations", "logits"):
        assert 2 * once[part] == twice[part] == wide[part]
    for part in ("weights", "gradients", "optimizer"):
        assert once[part] == twice[part]


def test_logits_never_exceed_their_budget(llama):
    assert estimated(llama, longest=10**6)["logits"] == 3 * LOGIT_BYTES


def test_recomputing_keeps_less(llama):
    kept = estimated(llama, layers="all")["activations"]
    assert estimated(llama, layers="all", gradient_checkpointing=True)["activations"] < kept / 2


def test_sharding_divides_what_is_split(llama):
    whole, split = estimated(llama), estimated(llama, shards=4)
    for part in ("weights", "gradients", "optimizer"):
        assert split[part] == whole[part] // 4
    assert split["activations"] == whole["activations"]


def test_adapted_experts_are_there_once_more(pico, tokenizer, tmp_path):
    """PEFT adds B A to the whole stack, and the backward pass needs the sum: found among what autograd keeps."""
    for each in (pico("mixtral"), tokenizer):
        each.save_pretrained(tmp_path / "mixture")
    prepared, settings = ready(tmp_path / "mixture", layers="011", lora_r=2, target_modules="mlp")
    plain, _ = ready(tmp_path / "mixture", layers="011", lora_r=2)
    stacks = {target["name"]: 4 * math.prod(target["shape"]) for target in prepared.trainable.targets()}
    memory = estimate_memory(prepared, settings, 20)
    adapters = 4 * sum(value.numel() for value in prepared.trained.values())
    assert memory["weights"] == 4 * plain.total_parameters + adapters + sum(stacks.values())
    own, kept = {value.untyped_storage().data_ptr() for value in prepared.model.parameters()}, {}

    def keep(value):
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    prepared.model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        loss = prepared.model(input_ids=IDS, labels=IDS, use_cache=False).loss
    made = sorted(size for place, size in kept.items() if place not in own and size in stacks.values())
    # the lowest adapted stack's own input needs no gradient, so its sum is not kept
    assert made == sorted(stacks.values())[:-1]
    assert loss.requires_grad
