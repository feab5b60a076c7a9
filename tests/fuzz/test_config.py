"""config.json of a model."""

from .kind import Kind, cases_of
from .nasty import Spoil

CPU = ("--device", "cpu")
MEASURED = ("--metrics", "change_own,change_increment", "--no-precision-floor")
SEEN = ("--data", "sums.jsonl", "--num-samples", "4", *MEASURED)
COMMANDS = (
    ("analyze", "start", "sft", "--weights-only", *CPU, "-o", "OUT"),
    ("analyze", "start", "sft", *SEEN, *CPU, "-o", "OUT"),
    ("probe", "start", "sft", "--data", "sums.jsonl", "--num-samples", "4", *CPU, "-o", "OUT"),
    ("merge", "start", "sft", "--alphas", "0,0.5,1", "-o", "OUT"),
)


def another_model(spoil: Spoil) -> bool:
    """What stands there means another model, which transformers builds."""
    return spoil.how == "set" and spoil.what in ("a half", "ten million", "10^12", "1e308", "zero", "true")


FAILED = (
    (2, Spoil("set", ("rope_parameters", "rope_type"), "Infinity")),
    (3, Spoil("set", ("rope_parameters", "rope_type"), "parents")),
    (1, Spoil("set", ("rope_parameters", "rope_theta"), "{}")),
    (2, Spoil("wrap", ("bos_token_id",), "100,000 letters")),
    (2, Spoil("set", ("bos_token_id",), "100,000 braces")),
    (1, Spoil("repeat", ("model_type",), "100,000 numbers")),
)
NEEDS = ("start", "sft", "sums.jsonl")
KINDS = [
    Kind("config.json of the base", "start/config.json", COMMANDS, NEEDS, 10, meant=another_model, kept=FAILED),
    Kind("config.json of the tuned", "sft/config.json", COMMANDS, NEEDS, 10, meant=another_model),
]

test = cases_of(KINDS)
