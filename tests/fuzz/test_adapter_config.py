"""adapter_config.json of a stranger's adapter."""

from .kind import Kind, cases_of
from .nasty import Spoil

CPU = ("--device", "cpu")
COMMANDS = (
    ("analyze", "start", "adapter", "--weights-only", *CPU, "-o", "OUT"),
    ("export", "adapter", "--to", "merged", "--output", "OUT"),
    ("export", "adapter", "--to", "equal-rank", "--output", "OUT"),
    ("export", "adapter", "--to", "lora-config", "--output", "OUT"),
    ("export", "adapter", "--to", "trl", "--output", "OUT"),
    ("merge", "start", "adapter", "--alphas", "0,0.5,1", "-o", "OUT"),
    ("probe", "start", "adapter", "--data", "sums.jsonl", "--num-samples", "4", *CPU, "-o", "OUT"),
)
SCALES = ("lora_alpha", "use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "fan_in_fan_out")


def another_adapter(spoil: Spoil) -> bool:
    """Its scale is free: any finite number is an adapter."""
    number = spoil.what in ("a half", "ten million", "10^12", "zero", "minus one", "true")
    return spoil.how == "set" and spoil.where[:1] in [(key,) for key in SCALES] and number


KINDS = [Kind(
    "adapter_config.json", "adapter/adapter_config.json", COMMANDS, ("start", "adapter", "sums.jsonl"), 15,
    meant=another_adapter,
)]  # fmt: skip

test = cases_of(KINDS)
