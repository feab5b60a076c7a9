"""Options on the command line: plans of layers, numbers, choices, lists."""

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from .kind import Kind, cases_of
from .nasty import Spoil


def words(line: str) -> tuple[str, ...]:
    return (*line.split(), "--data", "sums.jsonl", "--device", "cpu", "-o", "OUT")


ANALYZE = words("analyze start sft --num-samples 4 --metrics change_own,change_increment --no-precision-floor")
PROBE = words("probe start sft --num-samples 4")
SWAP = words("swap start sft --num-samples 4")
THIRDS = (*SWAP, "--segments", "3")
STEER = words(
    "steer start --from sft --num-samples 4 --num-directions-samples 4 --max-new-tokens 2 --random-draws 1 --no-scan"
)
TUNE = words("tune start --max-steps 1 --max-length 48")
FLOW = words("flow start --max-steps 1 --max-length 48")
PLANS = {ANALYZE: "layers", STEER: "blocks", TUNE: "layers", FLOW: "layers"}
NUMBERS = {
    ANALYZE: ("num-token-samples", "seeds", "max-length", "batch-tokens", "lens-positions", "token-dropout",
              "subspace-rank", "seed"),
    PROBE: ("num-samples", "max-length", "batch-tokens", "seed", "max-new-tokens"),
    THIRDS: ("num-samples", "max-length", "batch-tokens", "seed"),
    STEER: ("alpha", "components", "num-texts", "batch-tokens"),
    TUNE: ("lora-r", "lora-scale", "lora-alpha", "lora-dropout", "learning-rate", "num-train-epochs", "warmup-steps",
           "weight-decay", "adam-beta1", "adam-epsilon", "max-grad-norm", "per-device-train-batch-size",
           "gradient-accumulation-steps", "logging-steps", "save-steps", "rank-budget", "match-parameters",
           "target-modules", "also", "kl-beta", "iw-temperature"),
}  # fmt: skip
TEXTS = (
    "", " ", "0", "-1", "0.5", "1e30", "1e308", "1e400", "nan", "inf", "-inf", "10000000", "1000000000000",
    "9" * 5000, "0x10",
    "1_000", "٣", "²", "1,2", "1,,2", "0-999999999999", "0-2,0-999999999999", "2-0", "0.9-0.1", "0-0", "00", "000",
    "0110",
    "1" * 5000, "all", "all,all", "auto:", "auto:/nowhere", "auto:sums.jsonl", "ranks:1,2,3", "ranks:-1",
    "blocks:", "blocks:9",
    "0," * 3000 + "1", "1e5,1,1", "nonsense", "None", "true", "[1, 2]", "{}", "\x1b[31m", "a\nb", "\udcff",
    "~nosuchuser", "--json",
    "999999999999,1,1", "0.5.5", "1-", "-", ",", "mlp=1e400", "mlp=nan", "nan,nan,nan", "each", "1;2",
    "99999999999999999999",
)  # fmt: skip


def ways(document: Any) -> st.SearchStrategy[Spoil]:
    notation = st.text(st.sampled_from("0123456789-,.: e"), max_size=12)
    text = st.one_of(st.sampled_from(TEXTS), st.sampled_from(TEXTS), notation)
    return st.builds(Spoil, st.just("text"), st.just(()), text)


def nothing(file: Path, whole: Any, spoil: Spoil) -> None:
    """The command line alone is bad."""


FAILED = tuple((0, Spoil("text", (), what)) for what in ("9" * 5000, "0-999999999999"))


def kind_of(name: str, commands: list[tuple[str, ...]], cases: int, whole: str | None = None) -> Kind:
    return Kind(
        name, "sums.jsonl", commands, ("start", "sft", "sums.jsonl"), cases, lambda file: None, ways, nothing,
        meant=lambda spoil: True, kept=FAILED, words=lambda spoil: whole if spoil is None else spoil.what,
    )  # fmt: skip


KINDS = [
    kind_of("plans of layers", [(*command, f"--{option}", "NAME") for command, option in PLANS.items()], 15),
    kind_of("segments of a swap", [(*SWAP, "--segments", "NAME")], 6, "3"),
    kind_of("strengths of a merge", [("merge", "start", "sft", "-o", "OUT", "--alphas", "NAME")], 8, "0,0.5,1"),
    *(
        kind_of(f"numbers of {command[0]}", [(*command, f"--{option}", "NAME") for option in options], 4)
        for command, options in NUMBERS.items()
    ),
]

test = cases_of(KINDS)
