"""What a reader must know of an adapter: names that were put right, blocks it leaves alone, modules its file lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn

from midblock.base import MidblockError
from midblock.checkpoints.adapter import CONFIG, FACTORS, Adapter
from midblock.checkpoints.adapter_names import AdapterNames
from midblock.checkpoints.anatomy import Anatomy
from midblock.checkpoints.changes import known_of
from midblock.checkpoints.checkpoint import Checkpoint
from midblock.checkpoints.config import STRANGE, reason_of
from midblock.checkpoints.skeleton import skeleton_of

LISTED = 8  # numbers of blocks, at most, in one note


def adapter_notes(checkpoint: Checkpoint, name: str) -> list[str]:
    """The notes on a checkpoint's adapter; none of one that is whole, named as PEFT names, and on every block.

    Args:
        checkpoint: an adapter on its base, or a model by itself, which has none.
        name: what to call the model.
    """
    adapter = checkpoint.adapter
    if adapter is None:
        return []
    names, anatomy = _names(checkpoint, adapter)
    skeleton = skeleton_of(checkpoint.config, trust_remote_code=checkpoint.trust_remote_code)
    modules = set(names.modules.values())
    # embedding and head may be adapted together for one of them (ensure_weight_tying)
    held = {module for full, module in names.modules.items() if full.endswith(FACTORS)}
    factored = {module for module in held if anatomy.projection_of(f"{module}.weight").block is not None}
    lacking = [
        each
        for each in _targeted(adapter, skeleton, {each: names.written[each] for each in factored})
        if each not in modules
    ]
    if lacking and not adapter.settings.starts_as_base:
        what = f"the adapter {adapter.folder} holds nothing of {lacking[0]} ({len(lacking)} modules in all)"
        hint = "the file is not whole: save the adapter again"
        raise MidblockError(f"{what}, and its config starts them by chance (init_lora_weights)", hint=hint)
    return [*_renamed(names, name), *_reach(modules, anatomy, name), *_lacking(lacking, name)]


def _names(checkpoint: Checkpoint, adapter: Adapter) -> tuple[AdapterNames, Anatomy]:
    known, anatomy = known_of(checkpoint)
    with adapter.tensors() as own:
        return AdapterNames.of(own.names, known.names, adapter.folder), anatomy


def _renamed(names: AdapterNames, name: str) -> list[str]:
    if not names.renamed:
        return []
    full, stored = next(iter(names.renamed.items()))
    return [
        f"The adapter {name} calls {len(names.renamed)} of its {len(names.stored)} tensors otherwise than PEFT would "
        f"on this base: {stored} was read as {full}, and so on."
    ]


def _reach(modules: Iterable[str], anatomy: Anatomy, name: str) -> list[str]:
    """Which blocks it changes, where that is not all of them."""
    blocks = range(len(anatomy))
    layers = {anatomy.projection_of(f"{module}.weight").layer for module in modules}
    changed = [block for block in blocks if block in layers]
    if len(changed) == len(anatomy):
        return []
    if not changed:
        return [f"The adapter {name} changes none of the {len(anatomy)} blocks."]
    listed = ", ".join(map(str, changed[:LISTED])) + (", …" if len(changed) > LISTED else "")
    plural = "blocks" if len(changed) > 1 else "block"
    return [f"The adapter {name} changes {plural} {listed} only ({len(changed)} of {len(anatomy)})."]


def _lacking(modules: Sequence[str], name: str) -> list[str]:
    if not modules:
        return []
    more = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
    return [
        f"The adapter {name} names {modules[0]}{more} in its config and holds nothing of them: they count as unchanged."
    ]


def _check_targeted(adapter: Adapter, modules: Mapping[str, str], named: Callable[[str], bool]) -> None:
    """Do nothing if a list of targets names all that the file changes: PEFT passes over the rest without a word."""
    settings = adapter.settings
    texts = {each.text for each in settings.patterns if each.key == "target_modules"}  # names of another class's model
    if texts or settings.target_parameters or settings.modules_to_save or settings.trains_biases:
        return
    if strays := sorted(module for module, own in modules.items() if not (named(module) or named(own))):
        what = f"the adapter {adapter.folder} holds factors of {strays[0]} ({len(strays)} modules in all)"
        hint = "the config is another adapter's: save the adapter again"
        raise MidblockError(f"{what}, which its config does not target", hint=hint)


def _targeted(adapter: Adapter, skeleton: nn.Module, modules: Mapping[str, str]) -> list[str]:
    """The linear layers that a LoRA adapter's config names, as PEFT reads it; none where PEFT is not there to ask.

    Args:
        modules: that its file changes, to what it calls them.

    Raises:
        MidblockError: PEFT cannot read the config, or the file changes what it does not name.
    """
    if adapter.settings.peft_type != "LORA" or adapter.settings.inexpressible:
        return []
    try:
        from peft import LoraConfig
        from peft.tuners.tuners_utils import BaseTuner
    except ImportError:
        return []
    names = [name for name, _ in skeleton.named_modules()]
    adapter.settings.check_patterns(names, adapter.folder)
    try:
        config = LoraConfig.from_pretrained(str(adapter.folder))
    except STRANGE as error:
        raise MidblockError(f"PEFT cannot read {adapter.folder / CONFIG}: {reason_of(error)}") from error
    if not config.target_modules:
        return []
    _check_targeted(adapter, modules, lambda name: bool(BaseTuner._check_target_module_exists(config, name)))
    linear = [name for name, module in skeleton.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in linear if BaseTuner._check_target_module_exists(config, name)]
