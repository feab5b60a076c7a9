"""The state of a number: what the evidence says of it, in one word of a table's column `state`.

The words are part of the contract (docs/run_folder.md); which of them a row gets, `midblock.analysis.states` decides.
"""

from __future__ import annotations

from collections.abc import Mapping

MEASURED = "measured"
BELOW_FLOOR = "below_floor"
AS_RANDOM = "as_random"
AS_NULL = "as_null"
TOO_FEW = "too_few"
NOT_DEFINED = "not_defined"

# In words that follow a number or a name.
STATES: Mapping[str, str] = {
    MEASURED: "measured",
    BELOW_FLOOR: "no more than rounding makes",
    AS_RANDOM: "no other than a random change of the same size",
    AS_NULL: "no more alike than unrelated prompts",
    TOO_FEW: "too few prompts for an interval",
    NOT_DEFINED: "not defined",
}
