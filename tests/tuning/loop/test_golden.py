"""Ten deterministic CPU losses for every method, loss and anchor; a refactor leaves them as they are.

After a change that is meant to move them: `MIDBLOCK_GOLDEN=write pytest tests/tuning/loop/test_golden.py`, and say why.
"""

import itertools
import json
import os
from pathlib import Path

import pytest

from midblock.tuning import LOSSES
from midblock.tuning.place.methods import METHODS
from midblock.tuning.settings import ANCHORS

from ..conftest import write_model

GOLDEN = Path(__file__).with_name("golden.json")
HOLDS = {
    "none": {},
    "rpsft-block": {"anchor": "rpsft", "anchor_k": "8", "anchor_lambda": 0.1},
    "rpsft-subspace": {"anchor": "rpsft", "anchor_k": "8", "anchor_lambda": 0.1, "anchor_scope": "subspace"},
}
# carving starts from two models and has a budget instead of a choice of losses: tests/tuning/loop/test_carve_weights.py
OFFERED = [name for name, method in METHODS.items() if method.verb == "tune"]
# adapters on stacked experts are laid out in another way, and held by the anchor in another
CASES = [
    *("/".join(case) for case in itertools.product(OFFERED, LOSSES, HOLDS)),
    *(f"lora/nll/{hold}/experts" for hold in HOLDS),
]


@pytest.fixture(scope="module")
def mixture(pico, tokenizer, tmp_path_factory):
    return write_model("mixtral", tmp_path_factory.mktemp("models") / "mixture", pico, tokenizer)


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_the_golden_file(case, tuned, llama, mixture):
    method, loss, hold, *experts = case.split("/")
    options = {"method": method, "loss": loss, "learning_rate": 3e-3 if method == "lora" else 1e-3, **HOLDS[hold]}
    if loss == "stm":
        options["stm_threshold"] = 320.0  # an untrained model finds every token unlikely; this leaves out half of them
    if method == "full" and (LOSSES[loss].reference or LOSSES[loss].divergence):
        options["reference"] = str(llama)
    if experts:
        options |= {"base": mixture, "target_modules": "mlp"}
    artifact = tuned(**options)
    lines = {key: [line[key] for line in artifact.log] for key in ("loss", "nll")}
    if hold != "none":
        lines["penalty"] = [line["penalty"] for line in artifact.log]
        # zero at the start, to the rounding of a float32 product; then it holds on to something that moves
        assert lines["penalty"][0] < 1e-9 < lines["penalty"][-1]
    if os.environ.get("MIDBLOCK_GOLDEN") == "write":
        kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps({**kept, case: lines}, indent=1, sort_keys=True) + "\n")
    golden = json.loads(GOLDEN.read_text())[case]
    assert len(lines["loss"]) == 10
    assert lines["loss"] == pytest.approx(golden["loss"], rel=2e-5)
    assert lines["nll"] == pytest.approx(golden["nll"], rel=2e-5)
    if hold != "none":
        assert lines["penalty"] == pytest.approx(golden["penalty"], rel=1e-3, abs=1e-9)


def test_every_case_has_its_losses_and_none_is_left_over():
    assert set(json.loads(GOLDEN.read_text())) == set(CASES)
    assert set(ANCHORS) == {"none", "rpsft"}
