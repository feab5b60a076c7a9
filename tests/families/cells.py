"""CELLS: what is asked of every family, through midblock's own doors, each held against transformers' own numbers.

A cell is a function of a pair on disk that returns when all is right, raises `MidblockError` where midblock refuses,
and fails on a wrong number.
"""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

import midblock
from midblock.checkpoints import Anatomy, LoadSettings, open_checkpoint
from midblock.checkpoints.blockwise import BlockwiseModel
from midblock.data import TokenizedPrompt, make_batches
from midblock.trace import hold_states
from midblock.trace.tensor_store import TensorStore
from midblock.trace.walk import Asked, Pass, Work
from midblock.trace.walk_blocks import WalkBlocks
from midblock.tuning.carve.carver import Carver
from midblock.tuning.carve.dual import DualControl
from midblock.tuning.carve.masks import Masks
from midblock.tuning.place.carved import between
from midblock.tuning.settings import Carving

from .pair import ROWS, Pair, as_causal, blocks, changes, distance, in_block, kl, nll, norms, rows, texts

SAMPLES = len(ROWS)
TUNED = 1  # the block that is tuned
AGGREGATES = ("block", "attention", "mlp")  # rows made of other rows
# transformers hands out each block's own output here, the last one too, but not the embedding's
WITHOUT_EMBEDDING = ("falcon_mamba", "mamba", "mamba:untied", "mamba2", "rwkv")

# draws its experts at random while it is trained
DRAWS = ("phimoe",)


def near(value: float, rel: float = 2e-4, abs_: float = 1e-7) -> Any:
    return pytest.approx(value, rel=rel, abs=abs_)


def open_pair(pair: Pair, tuned: str = "tuned") -> Any:
    return midblock.load_pair(pair.path("base"), pair.path(tuned))


def at(found: pd.DataFrame, metric: str, layer: int, model: str, module: str = "residual") -> float:
    """The one value of a metric in a table."""
    where = (found.metric == metric) & (found.layer == layer) & (found.model == model) & (found.module == module)
    values = found[where].value
    assert len(values) == 1, f"{len(values)} values of {metric} of {model} at layer {layer}, {module}"
    return float(values.iloc[0])


def analyze(pair: Pair) -> None:
    """Norms and changes at every depth, and how far the predictions are apart, as transformers' own states say."""
    names = "l2_norm,change_intensity,logit_kl"
    found = midblock.analyze(open_pair(pair), pair.data, metrics=names, weights=False, num_samples=SAMPLES).frame
    base, tuned = pair.rows["base"], pair.rows["tuned"]
    check_depths(found, "l2_norm", "base", norms(base), pair)
    check_depths(found, "l2_norm", "tuned", norms(tuned), pair)
    check_depths(found, "change_intensity", "tuned", changes(base, tuned), pair)
    for layer in (pair.depth - 1, pair.depth):
        assert at(found, "logit_kl", layer, "tuned") == near(kl(base, tuned), rel=2e-3), f"logit_kl at layer {layer}"


def check_depths(found: pd.DataFrame, metric: str, model: str, own: list[float], pair: Pair, rel: float = 2e-4) -> None:
    """Compare every depth; transformers hands out the last block's state only after the final norm."""
    layers = list(range(-1, pair.depth + 1))
    layers.remove(-1 if pair.family in WITHOUT_EMBEDDING else pair.depth - 1)
    assert len(layers) == len(own), f"{metric}: {len(layers)} layers, transformers hands out {len(own)} states"
    got = [at(found, metric, layer, model) for layer in layers]
    assert got == [near(value, rel, abs_=1e-6) for value in own], f"{metric} of {model} at layers {layers}"


def weights(pair: Pair) -> None:
    """The norm of every block's change; all rows together are the whole model's change."""
    found = midblock.analyze(open_pair(pair), weights_only=True, metrics="delta_fro").frame
    base, tuned = pair.models.values()
    each = [at(found, "delta_fro", block, "tuned", "block") for block in range(pair.depth)]
    assert each == [near(distance(base, tuned, block), rel=1e-5) for block in range(pair.depth)], "delta_fro of blocks"
    outside = found[~found.layer.between(0, pair.depth - 1) & ~found.module.isin(AGGREGATES)]
    if is_tied(base):
        outside = outside[outside.module != "head"]
    together = (float(outside.value.pow(2).sum()) + sum(value**2 for value in each)) ** 0.5
    assert together == near(distance(base, tuned), rel=1e-5), "all rows together"


def is_tied(model: nn.Module) -> bool:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[operator]
    return getattr(head, "weight", None) is getattr(embedding, "weight", None)


def by_blocks(pair: Pair) -> None:
    """With one block at a time in memory, every layer's states and the logits are the whole model's to the bit."""
    whole, ids = pair.models["base"], [ids for ids, _ in texts()]
    prompts = [TokenizedPrompt(number, tuple(each), 1) for number, each in enumerate(ids)]
    (batch,) = make_batches(prompts, batch_tokens=10_000)
    checkpoint = open_checkpoint(pair.path("base"))
    model = BlockwiseModel.of(checkpoint, LoadSettings(device="cpu", dtype="float32"), "base")
    found: list[Tensor] = []

    def work() -> Work:
        (passed,) = yield Asked((Pass("base", batch, batch.region("all"), hold=True),))
        found.extend(passed.states.states[layer] for layer in range(-1, pair.depth + 1))
        yield Asked()
        found.append(model.anatomy.logits(found[-1]))

    with TensorStore(None, None) as kept, torch.inference_mode():
        WalkBlocks({"base": model}, kept, found.append).run([work()])
        states = hold_states(Anatomy.of(whole), batch.input_ids).states
        own = [states[layer] for layer in range(-1, pair.depth + 1)]
        own.append(Anatomy.of(whole).logits(own[-1]))
    model.close()
    for layer, (ours, theirs) in enumerate(zip(found, own, strict=True), start=-1):
        assert torch.equal(ours, theirs), f"layer {layer} of {pair.depth}, the logits last"


def probe(pair: Pair) -> None:
    """Read off at the last depth, a model loses what it loses."""
    found = midblock.probe(open_pair(pair), pair.data, num_samples=SAMPLES).frame
    for model, own in pair.rows.items():
        value = at(found, "exit_nll", pair.depth - 1, model)
        assert value == near(nll(own, ended=False)), f"exit_nll of {model}"


def swap(pair: Pair) -> None:
    """One block exchanged is the whole model with that block's weights copied."""
    found = midblock.swap(open_pair(pair), pair.data, segments="each", num_samples=SAMPLES).frame
    for model, own in pair.rows.items():
        reference = at(found, "swap_nll.reference", pair.depth, model, f"{model}_head")
        assert reference == near(nll(own, ended=False)), f"swap_nll.reference of {model}"
    for block in range(pair.depth):
        truth = nll(rows(pair.exchanged(block)), ended=False)
        assert at(found, "swap_nll", block, "base", "base_head") == near(truth), f"swap_nll of block {block}"


def merge(pair: Pair) -> None:
    """Every tensor of the merged checkpoint is the mean of the two, and transformers reads it."""
    merged = midblock.merge(pair.path("base"), pair.path("tuned"), "0.5", output_dir=pair.path("merged"))
    base, tuned, mixed = (tensors(folder) for folder in (pair.path("base"), pair.path("tuned"), str(merged)))
    assert set(mixed) == set(base)
    for name, value in mixed.items():
        assert value.dtype == base[name].dtype, name
        mean = (base[name] + tuned[name]) / 2 if value.is_floating_point() else base[name]
        torch.testing.assert_close(value, mean, rtol=1e-6, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")
    _, told = pair.kind.from_pretrained(merged, output_loading_info=True)  # type: ignore[attr-defined]
    assert not any(told.values()), told


def tensors(folder: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint or an adapter."""
    files = sorted(Path(folder).glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


def tune(pair: Pair) -> None:
    """The first step's loss is the model's own, adapters sit where planned, and the run is read as PEFT reads it."""
    run = tuned_run(pair, "lora", lora_r=2)
    base = as_causal(pair, pair.path("base"))
    planned = {target["name"] for target in json.loads((run / "plan.json").read_text())["targets"]}
    assert planned
    assert all(name.startswith(f"{blocks(base)[0]}.{TUNED}.") for name in planned), planned
    stored = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in tensors(str(run / "adapter"))}
    # of stacked experts PEFT stores the module's name, once for each parameter
    modules = dict(base.named_modules())
    owners = {name if name in modules else name.rpartition(".")[0] for name in planned}
    assert {name.replace(".base_layer", "") for name in stored} == owners
    adapted = PeftModel.from_pretrained(base, str(run / "adapter")).eval()
    own = rows(adapted)
    untouched = as_causal(pair, pair.path("base"))
    check_read_again(pair, run, own, distance(untouched, adapted.merge_and_unload(), TUNED))


def tune_full(pair: Pair) -> None:
    """The first step's loss is the model's own, nothing but the block changes, and the run is read as transformers'."""
    run = tuned_run(pair, "full")
    base, after = pair.models["base"], pair.load(str(run / "model"))
    before = dict(base.named_parameters())
    moved = {name for name, weight in after.named_parameters() if not torch.equal(weight, before[name])}
    assert moved
    assert moved <= in_block(base, TUNED), sorted(moved - in_block(base, TUNED))
    check_read_again(pair, run, rows(after), distance(base, after, TUNED))


def tuned_run(pair: Pair, method: str, **how: Any) -> Path:
    """One step of tuning; the loss before it is the model's own."""
    plan = "".join("01"[block == TUNED] for block in range(pair.depth))
    step = {"max_steps": 1, "per_device_train_batch_size": SAMPLES, "learning_rate": 0.01, "overwrite": True}
    run = pair.folder / method
    result = midblock.tune(pair.path("base"), pair.data, plan, method=method, output_dir=str(run), **step, **how)
    if pair.family not in DRAWS:
        assert result.log[0]["nll"] == near(nll(pair.rows["base"], ended=True)), "nll of the first step"
    return run


def check_read_again(pair: Pair, run: Path, own: list[Any], apart: float) -> None:
    """Open a run as `analyze` does: predictions and weights as of the model that others make of it."""
    opened = open_pair(pair, run.name)
    assert nll(rows(opened.tuned[0].model), ended=True) == near(nll(own, ended=True)), "nll of the run read again"
    found = midblock.analyze(opened, weights_only=True, metrics="delta_fro").frame
    assert at(found, "delta_fro", TUNED, run.name, "block") == near(apart, rel=1e-3), "delta_fro of the tuned block"


def carve(pair: Pair) -> None:
    """All masks on are the tuned model, all off the base, to the bit; every entry is of one of the two between them."""
    model = copy.deepcopy(pair.models["base"])
    groups, weights = between(model, copy.deepcopy(pair.models["tuned"]), "tuned")
    ones = {layer: torch.ones(groups.size(layer), dtype=torch.float64) for layer in groups.layers}
    carver = Carver(Carving(), groups, weights, Masks.of(ones), DualControl.of(Carving()))
    check_same(model, pair.models["tuned"])
    carver.turn({layer: each < 0 for layer, each in ones.items()}, {})
    check_same(model, pair.models["base"])
    stream = torch.Generator().manual_seed(0)
    carver.turn({layer: torch.rand(len(each), generator=stream) > 0.5 for layer, each in ones.items()}, {})
    for name, channels in groups.channels.items():
        base, tuned = (pair.models[which].get_parameter(name) for which in ("base", "tuned"))
        on = torch.ones_like(base, dtype=torch.bool)
        for dim, index in enumerate(channels.index):
            if index is not None:
                on &= carver.on[channels.layer][index].view(-1, *(1,) * (on.ndim - 1 - dim))
        assert torch.equal(model.get_parameter(name), torch.where(on, tuned, base)), name


def check_same(model: nn.Module, other: nn.Module) -> None:
    """Every parameter is the same, to the bit."""
    different = [name for name, value in model.named_parameters() if not torch.equal(value, other.get_parameter(name))]
    assert different == []


CELLS: Mapping[str, Callable[[Pair], None]] = {
    "analyze": analyze,
    "by blocks": by_blocks,
    "weights": weights,
    "probe": probe,
    "swap": swap,
    "merge": merge,
    "tune": tune,
    "tune full": tune_full,
    "carve": carve,
}
