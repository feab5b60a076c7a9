"""LoRA adapters in PEFT's format: made from an AdapterPlan, and checked against it.

PEFT matches names and ranks by patterns and says nothing when one does not match, so what it made is compared with the
plan, tensor by tensor, before anything trains.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from typing import Any

import torch
from torch import nn

from midblock.base import MidblockError, derive, unknown
from midblock.checkpoints import LowRankDelta
from midblock.checkpoints.unmergeable import LOST_STARTS
from midblock.tuning.place.adapter_plan import AdapterPlan, Target
from midblock.tuning.place.peft_names import check_read_back
from midblock.tuning.settings import Placement

INITS = ("default", "gaussian", "orthogonal", "pissa", "olora")
ADAPTER = "default"


def lora_config(adapters: AdapterPlan, settings: Placement, base: str | None) -> Any:
    """Write an AdapterPlan as PEFT's LoraConfig.

    Modules are named in full. The commonest rank and alpha stand as the config's own; others in `rank_pattern` and
    `alpha_pattern` under `^name$`, for PEFT lets a shorter key match any name that ends like it.

    Args:
        adapters: what goes where.
        settings: dropout, DoRA, rsLoRA and the start of the adapters.
        base: reference of the base model, for whoever loads the adapter.

    Returns:
        A peft.LoraConfig.

    Raises:
        MidblockError: an unknown start, or an option that PEFT has not for fused experts.
    """
    from peft import LoraConfig

    _check_supported(adapters, settings)
    modules = [target for target in adapters.targets if not target.by_parameter]
    parameters = [target for target in adapters.targets if target.by_parameter]
    # PEFT warns of any pattern for a parameter that it matched nothing, wrongly: so theirs are the config's own
    (rank, alpha), _ = Counter((t.rank, t.alpha) for t in parameters or adapters.targets).most_common(1)[0]
    others = [(_key(target), target) for target in adapters.targets]
    return LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        target_modules=[target.name for target in modules],
        target_parameters=[target.name for target in parameters] or None,
        r=rank,
        lora_alpha=_number(alpha),  # type: ignore[arg-type]
        rank_pattern={key: target.rank for key, target in others if target.rank != rank},
        alpha_pattern={key: _number(target.alpha) for key, target in others if target.alpha != alpha},
        lora_dropout=settings.lora_dropout,
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
        init_lora_weights=True if settings.init_lora_weights == "default" else settings.init_lora_weights,  # type: ignore[arg-type]
        fan_in_fan_out=any(target.transposed for target in modules),
    )


def attach(
    model: nn.Module, adapters: AdapterPlan, settings: Placement, *, seed: int, base: str | None = None
) -> nn.Module:
    """Put the adapters into `model`, in place, and check them; everything else is frozen.

    The adapters' start depends on `seed` and the plan alone: torch is seeded right before they are drawn, and its
    random state, on the CPU and on CUDA devices, is afterwards what it was. Adapters of 16-bit models are float32.

    Args:
        model: the causal language model for which the plan was made.
        adapters: what goes where.
        settings: as for `lora_config`.
        seed: decides the start of A (and B, where the start is not the default one).
        base: reference of the base model to write into the adapter's config; the model's own when left out.

    Returns:
        The peft.PeftModel around `model`.

    Raises:
        MidblockError: as `lora_config`, `check_adapters` and `check_read_back`; or PEFT refuses.
    """
    from peft import get_peft_model

    config = lora_config(adapters, settings, None)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), warnings.catch_warnings():
        for idle in (".*keys did not match any targeted module", ".*is_gradient_checkpointing. is deprecated"):
            warnings.filterwarnings("ignore", message=idle)
        torch.manual_seed(derive(seed, "adapters"))
        try:
            peft_model: Any = get_peft_model(model, config)
        except (ValueError, TypeError, ImportError) as error:
            raise MidblockError(f"PEFT refuses these adapters: {str(error).strip().splitlines()[0]}") from error
    if base is not None:
        peft_model.peft_config[ADAPTER].base_model_name_or_path = base
    check_adapters(peft_model, adapters, settings)
    check_read_back(peft_model, ADAPTER)
    return peft_model


def check_adapters(peft_model: nn.Module, adapters: AdapterPlan, settings: Placement) -> None:
    """Compare the adapters that are there with the plan.

    Raises:
        MidblockError: an adapter is missing or too many, has another rank, shape, scale or dropout, or something that
            is no adapter would be trained; the message names the module, what was expected and what was found.
    """
    layers = _lora_layers(peft_model)
    planned = {target.name: target for target in adapters.targets}
    if missing := sorted(set(planned) - set(layers)):
        raise MidblockError(f"{missing[0]} should have an adapter and has none ({len(missing)} missing in all)")
    if surplus := sorted(set(layers) - set(planned)):
        raise MidblockError(f"{surplus[0]} has an adapter and should have none ({len(surplus)} too many in all)")
    for name, target in planned.items():
        found = _facts(layers[name])
        for fact, value in _expected(target, adapters, settings).items():
            if not _same(found[fact], value):
                raise MidblockError(f"the adapter on {name}: {fact} should be {value}, it is {found[fact]}")
    for name, parameter in peft_model.named_parameters():
        if parameter.requires_grad != (".lora_" in name):
            state = "is frozen, though it belongs to an adapter" if ".lora_" in name else "would be trained"
            raise MidblockError(f"{name} {state}")


def live_factors(peft_model: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter, float]]:
    """A, B and what PEFT multiplies B A by, of every adapter, by what it sits on: a module, or a parameter.

    The parameters themselves, of stacked experts as PEFT lays them out: A (E·r, n), B (m, r·E). Ask again after
    sharding, which puts other parameters in their place.
    """
    return {
        name: (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, float(layer.scaling[ADAPTER]))
        for name, layer in _lora_layers(peft_model).items()
    }


def adapter_parameters(peft_model: nn.Module) -> dict[str, LowRankDelta]:
    """The live factors on linear modules, by the module's name in the base model.

    B and A are the parameters themselves, B (m, r), A (r, n) and `scale` what PEFT multiplies B A by; with DoRA the
    change of the weight is more than that product. Fused experts are left out. Ask again after sharding, which puts
    other parameters in their place.
    """
    return {
        name: LowRankDelta(layer.lora_B[ADAPTER].weight, layer.lora_A[ADAPTER].weight, float(layer.scaling[ADAPTER]))
        for name, layer in _lora_layers(peft_model).items()
        if not hasattr(layer, "parameter_name")
    }


def _check_supported(adapters: AdapterPlan, settings: Placement) -> None:
    init = settings.init_lora_weights
    if init.startswith(LOST_STARTS):
        what = f"init_lora_weights {init!r} takes out of the base what loading the adapter could not find again"
        raise MidblockError(what, hint="pissa starts from the same factors, computed exactly")
    if init not in INITS:
        raise unknown("init_lora_weights", init, INITS)
    odd = next((target for target in adapters.targets if target.rank % 2), None)
    if init == "orthogonal" and odd is not None:
        raise MidblockError(f"an orthogonal start needs even ranks, {odd.name} has {odd.rank}")
    turned = next((target for target in adapters.targets if not target.by_parameter and target.transposed), None)
    if init == "olora" and turned is not None:
        # PEFT factors the weight as stored, so that A and B come out exchanged
        raise MidblockError(f"PEFT has no olora start for weights stored as (in, out) such as {turned.name}")
    parameter = next((target for target in adapters.targets if target.by_parameter), None)
    if parameter is None:
        return
    refused = {
        "lora_dropout": settings.lora_dropout > 0,
        "use_dora": settings.use_dora,
        f"init_lora_weights {init!r}": init not in ("default", "gaussian"),
    }
    if given := [name for name, there in refused.items() if there]:
        what = f"PEFT has no {given[0]} for {_what(parameter)} such as {parameter.name}"
        raise MidblockError(what, hint="leave it out, or --target-modules attention")


def _what(target: Target) -> str:
    return "fused experts" if target.projection.stacked else "a layer that it takes for fused experts"


def _lora_layers(peft_model: nn.Module) -> dict[str, Any]:
    """PEFT's layers by the name of what they adapt: the module, or for fused experts the parameter."""
    from peft.tuners.lora import LoraLayer

    base: Any = peft_model.get_base_model()  # type: ignore[operator]
    return {
        # several parameters of one module are wrapped one around the other
        name.replace(".base_layer", "")
        + (f".{own}" if (own := getattr(module, "parameter_name", None)) else ""): module
        for name, module in base.named_modules()
        if isinstance(module, LoraLayer)
    }


def _expected(target: Target, adapters: AdapterPlan, settings: Placement) -> dict[str, object]:
    rows, columns = target.shape[-2:]
    stacked = target.rank * (target.shape[0] if target.projection.stacked else 1)
    return {
        "rank": target.rank,
        "shape of A": (stacked, columns),
        "shape of B": (rows, stacked),
        "scale": adapters.scale(target, settings.use_rslora),
        "dropout": settings.lora_dropout,
        "DoRA": settings.use_dora,
    }


def _facts(layer: Any) -> dict[str, object]:
    return {
        "rank": layer.r.get(ADAPTER),
        "shape of A": tuple(layer.lora_A[ADAPTER].weight.shape),
        "shape of B": tuple(layer.lora_B[ADAPTER].weight.shape),
        "scale": layer.scaling[ADAPTER],
        "dropout": getattr(layer.lora_dropout[ADAPTER], "p", 0.0),
        "DoRA": ADAPTER in layer.lora_magnitude_vector,
    }


def _same(found: object, expected: object) -> bool:
    if isinstance(found, float) and isinstance(expected, float):
        return abs(found - expected) <= 1e-9 * abs(expected)
    return found == expected


def _key(target: Target) -> str:
    return f"^{re.escape(target.name)}$"


def _number(alpha: float) -> float | int:
    return int(alpha) if alpha.is_integer() else alpha  # PEFT's type is int, which other readers may insist on
