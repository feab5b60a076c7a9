"""config.json of a model."""

from .kind import Kind, everything_about
from .nasty import Spoil

CPU = ("--device", "cpu")
SEEN = ("--data", "sums.jsonl", "--num-samples", "4", "--metrics", "change_increment", "--no-precision-floor")
COMMANDS = (
    ("analyze", "start", "sft", "--weights-only", *CPU, "-o", "OUT"),
    ("analyze", "start", "sft", *SEEN, *CPU, "-o", "OUT"),
    ("probe", "start", "sft", "--data", "sums.jsonl", "--num-samples", "4", *CPU, "-o", "OUT"),
    ("merge", "start", "sft", "--alphas", "0,0.5,1", "-o", "OUT"),
)


def another_model(spoil: Spoil) -> bool:
    """What stands there means another model, which transformers builds."""
    return spoil.how == "set" and spoil.what in ("a half", "ten million", "10^12", "1e308", "zero", "true")


BASE = Kind("config.json of the base", "start/config.json", COMMANDS, ("start", "sft", "sums.jsonl"), 30, meant=another_model)
TUNED = Kind("config.json of the tuned", "sft/config.json", COMMANDS, ("start", "sft", "sums.jsonl"), 20, meant=another_model)

test_of_the_base = everything_about(BASE)
test_of_the_tuned = everything_about(TUNED)
