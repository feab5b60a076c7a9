"""Names of modules that PEFT reads as something else, so that adapters on them must be asked for by parameter.

Since transformers fused the experts of mixtures, PEFT takes a module called `gate_proj`, `up_proj`, `down_proj` or
`gate` in such a model for experts as they were named before, also where it is a dense MLP, a shared expert or a gate
of attention. A parameter's name it leaves alone. PEFT itself is asked, for each last name once.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn


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
