"""Names of modules that PEFT reads as something else, so that adapters on them must be asked for by parameter.

Since transformers fused the experts of mixtures, PEFT takes a module called `gate_proj`, `up_proj`, `down_proj` or
`gate` in such a model for experts as they were named before, also where it is a dense MLP, a shared expert or a gate
of attention. A parameter's name it leaves alone. PEFT itself is asked, for each last name once.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from midblock.base import MidblockError


def rewritten_by_peft(model: nn.Module, modules: Collection[str]) -> frozenset[str]:
    """Those of the `modules` of a model that PEFT would not adapt under their own names; none without PEFT."""
    try:
        from peft import LoraConfig
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:
        return frozenset()

    def is_rewritten(name: str) -> bool:
        config = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(config, model=model, conversions=None)
        except ValueError:  # it would have to be asked for together with others
            return True
        return name not in (config.target_modules or ())

    last = {name.rpartition(".")[2]: name for name in modules}
    odd = {own for own, name in last.items() if is_rewritten(name)}
    return frozenset(name for name in modules if name.rpartition(".")[2] in odd)


def check_read_back(peft_model: Any, adapter: str) -> None:
    """Do nothing if PEFT would read the saved adapters back under the names that it saves.

    Raises:
        MidblockError: it renames one, as it renames the weights of older checkpoints, to what no module is called.
    """
    from peft import get_peft_model_state_dict

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
    except ImportError:
        return
    saved = get_peft_model_state_dict(peft_model, adapter_name=adapter, save_embedding_layers=False)
    read = convert_peft_adapter_state_dict_for_transformers(
        peft_model, peft_model.peft_config[adapter], dict(saved), adapter
    )
    if lost := sorted(set(saved) - set(read)):
        module = lost[0].removeprefix("base_model.model.").partition(".lora_")[0]
        what = f"PEFT would read the adapter on {module} back under another name ({len(lost)} tensors in all)"
        raise MidblockError(what, hint="target_modules without it")
