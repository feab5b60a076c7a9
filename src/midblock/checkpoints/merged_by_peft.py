"""A model with an adapter merged in by PEFT, checked: all of the adapter arrived, and what is merged computes the same.

PEFT passes over tensors it does not know, merges what is tied twice, and merges some methods only in part; each is
seen to here. Cost: the adapter is read twice; three forward passes of a few tokens where its method is not plain LoRA.
Source: PEFT's `PeftModel`.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from midblock.base import MidblockError
from midblock.checkpoints.adapter import CONFIG, WEIGHTS, Adapter, Tensors
from midblock.checkpoints.adapter_names import ADAPTER, AdapterTensors
from midblock.checkpoints.config import STRANGE
from midblock.checkpoints.lora_config import matching

PROBES = 24  # tokens, spread over the vocabulary, that the models before and after merging are compared on
TOLERANCE = 1e-3  # of the largest logit, in float32, at most
PATTERNS = ("rank_pattern", "alpha_pattern")
GRAINS = 30  # units of rounding of the largest logit, in types that are coarser, at most
# Of what the adapter does, what merging may change, in float32 and in coarser types; and what rounding makes of the
# largest logit anyway (32 methods on small models, three on one of 30 blocks: up to 7e-6 of it in float32, 8 units in
# bfloat16).
SHARE, COARSE_SHARE, FINE, FINE_GRAINS = 0.1, 0.5, 1e-5, 8

REFUSED = (*STRANGE, SafetensorError)


def merge_in(model: nn.Module, adapter: Adapter, base: Tensors) -> nn.Module:
    """Give the model with the adapter merged in.

    Args:
        model: the adapter's base; it is changed.
        base: names of its parameters, in memory and on disk.

    Raises:
        MidblockError: PEFT is not there, cannot load or merge this adapter, took up only a part of it, or the merged
            model computes something else.
    """
    tuned = put_on(model, adapter, base)
    if adapter.settings.inexpressible is None:
        return merge(tuned, adapter)
    merged, difference = merge_compared(tuned, adapter)
    difference.check(adapter)
    return merged


def put_on(model: nn.Module, adapter: Adapter, base: Tensors) -> Any:
    """Put an adapter on its base, and see that all of it arrived.

    Returns:
        The peft.PeftModel around `model`.

    Raises:
        MidblockError: as `merge_in`.
    """
    try:
        from peft import PeftModel, set_peft_model_state_dict
        from peft.utils import load_peft_weights
    except ImportError as error:
        raise MidblockError("peft is needed to read an adapter", hint='pip install "midblock[train]"') from error
    with adapter.tensors_on(base) as own:
        names = (*(name for name, _ in model.named_modules()), *own.within.written.values())
        adapter.settings.check_patterns(names, adapter.folder)
    with adapter.tensors_on(base) as own, _as_peft_names_them(own, adapter.folder) as folder:
        try:
            tuned: Any = PeftModel.from_pretrained(model, str(folder)).eval()
            loaded = set_peft_model_state_dict(tuned, load_peft_weights(str(folder), device="cpu"))
        except torch.OutOfMemoryError:
            raise
        except REFUSED as error:
            raise MidblockError(f"the adapter {adapter.folder} does not fit its base: {_reason(error)}") from error
        _check_arrived(tuned, loaded, own, adapter)
    return tuned


def merge(tuned: Any, adapter: Adapter) -> nn.Module:
    """Merge an adapter that has been put on, and take PEFT off.

    Tied weights of which the adapter changes one are parted first; those that end up alike are tied again.

    Raises:
        MidblockError: PEFT cannot.
    """
    parted = _part(tuned, adapter)
    try:
        merged = tuned.merge_and_unload(safe_merge=True)
    except torch.OutOfMemoryError:
        raise
    except REFUSED as error:
        raise MidblockError(f"PEFT cannot merge {adapter.folder}: {_reason(error)}") from error
    for one, other in parted:
        tied = torch.equal(one.weight, other.weight)
        if tied:
            other.weight = one.weight
        merged.config.tie_word_embeddings = merged.config.get_text_config().tie_word_embeddings = tied
    return merged


@dataclass(frozen=True)
class Difference:
    """What merging did to the logits, relative to the largest.

    Attributes:
        error: the largest difference between merged and unmerged.
        effect: the largest that the adapter makes, unmerged.
        grain: the unit of rounding of the type they were computed in.
    """

    error: float
    effect: float
    grain: float

    def check(self, adapter: Adapter) -> None:
        """Do nothing if the merged model computes what the unmerged one did: an error is small beside what was merged.

        Raises:
            MidblockError: it does not.
        """
        coarse = self.grain > torch.finfo(torch.float32).eps
        share = COARSE_SHARE if coarse else SHARE
        most = max(TOLERANCE, GRAINS * self.grain)
        if not self.error <= min(most, max(FINE, FINE_GRAINS * self.grain, share * self.effect)):
            by = f"logits differ by {self.error:.1e}, by the adapter itself {self.effect:.1e}"
            what = f"{adapter.folder}: PEFT's merged model computes something else ({by})"
            hint = "--dtype float32, or use the adapter unmerged" if coarse else "use the adapter unmerged"
            raise MidblockError(what, hint=hint)


def merge_compared(tuned: Any, adapter: Adapter) -> tuple[nn.Module, Difference]:
    """As `merge`, and what it did to the logits of a few tokens."""
    embedding = tuned.get_base_model().get_input_embeddings()
    ids = torch.linspace(0, tuned.config.get_text_config().vocab_size - 1, PROBES).long()[None]
    ids = ids.to(next(embedding.parameters()).device)
    with torch.no_grad():
        before = tuned(input_ids=ids).logits.double()
        with tuned.disable_adapter():
            plain = tuned(input_ids=ids).logits.double()
        merged = merge(tuned, adapter)
        after = merged(input_ids=ids).logits.double()
    error, effect = (float((each - before).abs().max() / before.abs().max()) for each in (after, plain))
    return merged, Difference(error, effect, torch.finfo(next(merged.parameters()).dtype).eps)


@contextmanager
def _as_peft_names_them(own: AdapterTensors, folder: Path) -> Iterator[Path]:
    """A folder in which the adapter's tensors have the names that PEFT gives them; its own where they have.

    What its config's patterns say of single modules is said of them by name.
    """
    if not own.within.renamed:
        yield folder
        return
    config = _renamed(json.loads((folder / CONFIG).read_text(encoding="utf-8")), own.within.written)
    with tempfile.TemporaryDirectory(prefix="midblock-") as made:
        (Path(made) / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        save_file({name: own.read(name).contiguous().clone() for name in own.names}, Path(made) / WEIGHTS)
        yield Path(made)


def _renamed(config: dict[str, Any], written: Mapping[str, str]) -> dict[str, Any]:
    """An adapter's config of which what is said by the names of one model is said by the base's too.

    Args:
        written: the base's modules, to what the model that was tuned called them.
    """
    found = dict(config)
    parameters = {f".{end.rpartition('.')[2]}" for end in config.get("target_parameters") or ()}
    both = {f"{name}{end}": f"{own}{end}" for name, own in written.items() for end in ("", *sorted(parameters))}
    for key in PATTERNS:
        if given := config.get(key):
            said = {name: matching(given, (own, name), None) for name, own in both.items()}
            found[key] = {re.escape(name): value for name, value in said.items() if value is not None} | given
    targets = config.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        named = [name for name, own in written.items() if re.fullmatch(targets, own)]
        found["target_modules"] = named or targets
    elif isinstance(targets, list):
        named = [name for name, own in written.items() if any(f".{own}".endswith(f".{each}") for each in targets)]
        found["target_modules"] = [*targets, *named]
    return found


def _check_arrived(tuned: Any, loaded: Any, own: AdapterTensors, adapter: Adapter) -> None:
    """Do nothing if every tensor of the file was taken up, and every module that got any got all.

    A module that got none of LoRA stays as it is in the base; other methods need not start from there.
    """
    if lost := sorted(loaded.unexpected_keys):
        name = lost[0].replace(f".{ADAPTER}", "")
        what = f"the adapter {adapter.folder} changes {name}, which its base has not ({len(lost)} tensors in all)"
        raise MidblockError(what, hint="another base was tuned; --base names the right one")
    missing = [name for name in loaded.missing_keys if _is_own(name, tuned)]
    whole = adapter.settings.peft_type == "LORA" and adapter.settings.starts_as_base
    filled = {f".{module}." for module in own.within.modules.values()}
    lacking = [name for name in missing if not whole or any(module in name for module in filled)]
    if lacking:
        name = min(lacking).replace(f".{ADAPTER}", "")
        what = f"{adapter.folder / WEIGHTS} lacks {name} ({len(lacking)} tensors in all), which its config promises"
        raise MidblockError(what, hint="the file is not whole: save the adapter again")


def _is_own(name: str, tuned: Any) -> bool:
    """Whether a missing tensor is the adapter's and lies in files: of what modules share, one does."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    kind = tuned.peft_config[ADAPTER].peft_type
    if PEFT_TYPE_TO_PREFIX_MAPPING.get(kind, "") not in name or ADAPTER not in name.split("."):
        return False
    shared = {PeftType.VBLORA: "vblora_vector_bank", PeftType.TINYLORA: "tinylora_v"}.get(kind)
    if kind == PeftType.UNILORA:
        return "unilora_theta_d" not in name or name.startswith("base_model.unilora_theta_d")
    return shared is None or shared not in name


def _part(tuned: Any, adapter: Adapter) -> list[tuple[Any, Any]]:
    """Give each adapted module a weight of its own: a change merged into one of two tied weights moves both.

    Returns:
        The modules that shared one.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {id(module.get_base_layer()) for module in tuned.modules() if isinstance(module, BaseTunerLayer)}
    holders: dict[int, list[nn.Module]] = {}
    for module in tuned.modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            holders.setdefault(id(weight), []).append(module)
    parted = [
        (sharing[0], module)
        for sharing in holders.values()
        for module in sharing[1:]
        if any(id(each) in adapted for each in sharing)
    ]
    for _, module in parted:
        _give_own_weight(module, adapter)
    return parted


def _give_own_weight(module: nn.Module, adapter: Adapter) -> None:
    weight: Any = module.weight
    if weight.is_meta:
        what = f"{adapter.folder} changes one of two tied weights, which cannot be parted while they are offloaded"
        raise MidblockError(what, hint="--device cpu, or export --to merged first")
    module.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)


def _reason(error: Exception) -> str:
    """PEFT's or torch's own words; the second line of torch's message names the tensor."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, KeyError):
        return f"it lacks {lines[0]}"
    return (lines[:2][-1] if isinstance(error, RuntimeError) else lines[0]).strip()
