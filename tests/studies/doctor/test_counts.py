"""What is counted before a run against what the run then did; speeds are not tested."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import midblock
from midblock.analysis.prompts import prepare_prompts
from midblock.analysis.settings import AnalysisSettings
from midblock.analysis.work import kinds_of
from midblock.base.files import size_text
from midblock.checkpoints import Anatomy, Pair, load_pair, open_checkpoint
from midblock.checkpoints.footprint import Footprint
from midblock.studies.doctor.about import About
from midblock.studies.doctor.demand import Demand, Shape, _passes
from midblock.studies.doctor.forecast import fits_of
from midblock.studies.doctor.machine import Device
from midblock.studies.doctor.packages import BAD_PAIRS, bad_pairs, package_findings, unmet
from midblock.studies.doctor.speed import _few_blocks, work_of
from midblock.trace import run_backbone

CHECKED = 400  # tokens, at most, on which a run tries its models before the work


@pytest.mark.parametrize(
    "asked", [{"metrics": "p1"}, {"metrics": "standard"}, {"metrics": "all"}, {"controls": "random"}]
)
def test_tokens_that_blocks_run_over(asked, pico, tuned_from, tokenizer, data):
    base = pico("llama")
    pair = Pair.of_models(base, {"sft": tuned_from(base)}, tokenizer)
    settings = AnalysisSettings(num_samples=8, num_token_samples=4, weights=False, **asked)
    kinds = kinds_of(settings)
    shape = Shape.of(prepare_prompts(pair, data, settings, views="views" in kinds))
    ran = []
    for variant in pair:
        variant.model.model.layers[1].register_forward_pre_hook(
            lambda block, given: ran.append(given[0].shape[0] * given[0].shape[1])
        )
    midblock.analyze(pair, data, num_samples=8, num_token_samples=4, weights=False, **asked)
    counted = _passes(kinds, shape, settings, tuned=1)
    assert counted - 1 <= sum(ran) <= counted + CHECKED


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "qwen3_moe", "gemma3"])
def test_operations_of_a_token(family, pico):
    model = pico(family)
    model.set_attn_implementation("eager")  # so that all products are counted, of whole rows of attention
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    anatomy, ids = Anatomy.of(model), torch.randint(3, 290, (4, 32))
    with FlopCounterMode(display=False) as counter:
        run_backbone(anatomy, ids)
    assert 2 * work_of(anatomy, 32) - work_of(anatomy, 0) == pytest.approx(
        counter.get_total_flops() / ids.numel(), rel=0.01
    )


def test_blocks_to_be_timed_are_the_models_own_kind(family, pico, saved):
    model = pico(family)
    checkpoint = open_checkpoint(saved(model, "model"))
    few = _few_blocks(checkpoint, torch.float32, torch.device("cpu"))
    assert type(few.blocks[0]) is type(Anatomy.of(model).blocks[0])
    assert len(few) == 2
    assert torch.isfinite(run_backbone(few, torch.tensor([[3, 4, 5]]))).all()


def demand_of(pair):
    opened = load_pair(*pair, device="cpu")
    settings = AnalysisSettings(num_samples=8, num_token_samples=4)
    anatomy = Anatomy.of(opened.base.model)
    footprints = [Footprint.of(each.checkpoint, torch.float32) for each in opened]
    return Demand.of(anatomy, footprints, Shape.asked(settings), settings, torch.float32, 1000)


def test_what_does_not_fit_says_how_much_is_wanted(pair):
    demand = demand_of(pair)
    card = Device("cuda:0", "a card", 2**34, 2**20)
    words = {least: str(fits_of(demand, least, [card])[0]) for least in (None, 2**19, 2**30)}
    start = f"cuda:0 (a card): 1.0 MiB of 16.0 GiB free; about {size_text(demand.whole)} wanted: "
    assert words == {
        None: f"{start}they do not fit, and cannot be walked block by block",
        2**19: f"{start}block by block only, from 0.5 MiB",
        2**30: f"{start}block by block too: 1.0 GiB",
    }


def test_stretches_of_time_and_memory():
    both = About(1.0, 2.0) + About(0.5, 60.0)
    assert (both.low, both.high) == (1.5, 62.0)
    assert [About(1.0, 62.0).seconds, About(30.0, 600.0).seconds, About(3600.0, 72000.0).seconds] == [
        "1.0–62 s", "0.5–10 min", "1.0–20 h",
    ]  # fmt: skip
    assert About(2**20, 2**31).bytes == "1.0 MiB–2.0 GiB"


def test_packages_that_do_not_go_together():
    there = {"transformers": "5.3.0", "peft": "0.17.1", "trl": "0.28.0"}
    lines = [str(each) for each in bad_pairs(there)]
    assert len(lines) == 2
    assert lines[0].startswith("transformers 5.3.0 with peft 0.17.1: peft cannot be imported")
    assert not bad_pairs({"transformers": "5.6.0", "peft": "0.18.0", "trl": "1.10.0", "torchao": "0.16.0"})
    assert all(pair.source and pair.breaks for pair in BAD_PAIRS)


def test_requirements_that_are_not_met():
    wishes = {"trl": ["accelerate>=1.10", "vllm>=99; extra == 'vllm'", "peft>=0.18; extra == 'train'", "not a line !"]}
    found = unmet(wishes, {"accelerate": "1.9.0", "vllm": "1.0", "peft": "0.18.0"})
    assert [str(each) for each in found] == [
        "trl asks for accelerate>=1.10, installed is 1.9.0 (pip install 'accelerate>=1.10')"
    ]


def test_what_is_installed_here_goes_together():
    assert package_findings() == []
