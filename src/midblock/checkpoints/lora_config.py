"""LoraSettings: what adapter_config.json says, as far as it decides the change of the weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midblock.base import MidblockError
from midblock.checkpoints.adapter_fields import AdapterFields
from midblock.checkpoints.name_patterns import NamePattern, check_quick, patterns_of
from midblock.checkpoints.unmergeable import unmergeable

# config fields that, when set, make the change something else than scale · B A
NOT_LOW_RANK: Mapping[str, str] = {
    "use_dora": "DoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "layer_replication": "layer replication",
    "lora_bias": "LoRA with a bias",
    "target_parameters": "LoRA on stacked parameters (target_parameters)",
    "trainable_token_indices": "training of single tokens (trainable_token_indices)",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QA-LoRA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "megatron_config": "Megatron's sharded LoRA",
}

# of these, what is still read: a factor for each output, and a change for each expert
READ_NEVERTHELESS = ("use_dora", "target_parameters")

# entries that only PEFT reads
NUMBERS = ("layers_to_transform",)
NAMES = ("layers_pattern", "exclude_modules", "feedforward_modules")

# initialisations that take something out of the base's weights, so that the file is no change of the published base
ALTERING_INITS = ("pissa", "olora", "corda", "lora_ga", "loftq")


@dataclass(frozen=True)
class LoraSettings:
    """The part of an adapter's config that matters for its weights; names as in PEFT.

    Attributes:
        peft_type: "LORA" or another of PEFT's.
        base: `base_model_name_or_path`, and `revision` of it on the hub.
        r, lora_alpha: rank and alpha where no pattern says otherwise.
        rank_pattern, alpha_pattern: regular expression of module names to rank, to alpha.
        target_parameters: ends of the names of parameters that are adapted themselves: stacked experts.
        patterns: all that the config holds, to be tried before they are matched.
        use_dora: the change has a magnitude for each output too.
        trains_biases: tensors besides the targets' may be in the file.
        starts_as_base: an adapter of which nothing was loaded changes nothing.
        inexpressible: why the change is neither low-rank, DoRA, nor a whole replaced tensor; None if it is.
        unmergeable: why it is no change of weights at all, and what to try; None if it is one.
        rest: of what is inexpressible, everything the config says, for it all may decide the change.
    """

    peft_type: str
    base: str | None
    revision: str | None
    r: int
    lora_alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    target_modules: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    target_parameters: tuple[str, ...] = ()
    use_dora: bool = False
    starts_as_base: bool = True
    trains_biases: bool = False
    patterns: tuple[NamePattern, ...] = ()
    inexpressible: str | None = None
    unmergeable: tuple[str, str] | None = None
    rest: str = ""

    @classmethod
    def read(cls, file: Path) -> LoraSettings:
        """Read an adapter_config.json.

        Raises:
            MidblockError: it is missing, no JSON, lacks the type, the rank or the alpha, or has something of another
                type; that is named.
        """
        fields = AdapterFields.read(file)
        config, kind = fields.content, fields.kind()
        is_lora = kind == "LORA"
        for key in NUMBERS:
            fields.check_numbers(key)
        for key in NAMES:
            fields.texts(key)
        fields.check_start("init_lora_weights")
        reason = _inexpressible(kind, config)
        return cls(
            peft_type=kind,
            base=fields.text("base_model_name_or_path"),
            revision=fields.text("revision"),
            r=fields.rank("r") if is_lora else 0,
            lora_alpha=fields.alpha("lora_alpha") if is_lora else 0.0,
            rank_pattern=fields.ranks("rank_pattern") if is_lora else {},
            alpha_pattern=fields.alphas("alpha_pattern") if is_lora else {},
            use_rslora=fields.flag("use_rslora"),
            fan_in_fan_out=fields.flag("fan_in_fan_out"),
            target_modules=fields.texts("target_modules"),
            modules_to_save=fields.texts("modules_to_save"),
            target_parameters=fields.texts("target_parameters"),
            use_dora=fields.flag("use_dora"),
            starts_as_base=config.get("init_lora_weights", True) is not False,
            trains_biases=fields.trains_biases(),
            patterns=patterns_of(config, file),
            inexpressible=reason,
            unmergeable=unmergeable(kind, config),
            rest=json.dumps({**config, "base_model_name_or_path": None}, sort_keys=True) if reason else "",
        )

    @property
    def scaling(self) -> tuple[object, ...]:
        """Everything besides the factors that decides the change."""
        patterns = (tuple(self.rank_pattern.items()), tuple(self.alpha_pattern.items()))
        rest = (self.rest,) if self.rest else ()
        return (self.r, self.lora_alpha, *patterns, self.use_rslora, self.fan_in_fan_out, *rest)

    def check_patterns(self, modules: Iterable[str], folder: Path) -> None:
        """Do nothing if the patterns can be matched with the names of these modules, by PEFT too.

        Raises:
            MidblockError: one takes too long; it is named.
        """
        check_quick(self.patterns, modules, folder)

    def scale(self, module: str, rank: int, written: str = "") -> float:
        """What PEFT multiplies B A by in this module: alpha/r, or alpha/√r with rslora; see `check_patterns` first.

        Args:
            module: its name in the base, without `.weight`.
            rank: of the factors found, checked against the config's.
            written: what the model that was tuned called it, if otherwise: patterns are about its names.

        Raises:
            MidblockError: when the config gives another rank.
        """
        names = (written or module, module)
        expected = matching(self.rank_pattern, names, self.r)
        if rank != expected:
            raise MidblockError(f"the adapter's factors for {module} have rank {rank}, its config says {expected}")
        alpha = matching(self.alpha_pattern, names, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def matching(patterns: Mapping[str, Any], names: Sequence[str], default: Any) -> Any:
    """What the first pattern says that fits the end of one of a module's names, as in PEFT's `get_pattern_key`."""
    fitting = (
        value for key, value in patterns.items() if any(re.match(rf"(.*\.)?({key})$", module) for module in names)
    )
    return next(fitting, default)


def _inexpressible(kind: str, config: Mapping[str, Any]) -> str | None:
    if kind != "LORA":
        return f"an adapter of type {kind}"
    for name, title in NOT_LOW_RANK.items():
        if config.get(name) and name not in READ_NEVERTHELESS:
            return title
    init = str(config.get("init_lora_weights", "")).lower()
    return f"LoRA with init_lora_weights={init!r}, which alters the base," if init.startswith(ALTERING_INITS) else None
