"""What is expected of each cell of the matrix, and the page that is made of it."""

from __future__ import annotations

from collections.abc import Mapping

from midblock.checkpoints.unmergeable import OPTIONS, TYPES

from .methods import BASES, METHODS

EVERYWHERE = tuple(BASES)
LINEAR = ("llama", "llama, tied", "mixtral")  # bases without GPT-2's Conv1D

# what PEFT itself does not make, or cannot run, on a base
_ONLY_LINEAR = (
    "LoRA, OLoRA start",
    "LoRA, layers replicated",
    "LoRA, KaSA",
    "LoRA, block-diagonal",
    "AdaMSS",
    "BEFT",
    "BOFT",
    "C3A",
    "DeLoRA",
    "GLoRA",
    "HRA",
    "Lily",
    "LoHa",
    "LoHa, whole norm",
    "LoKr",
    "LoKr, both factors decomposed",
    "MiSS",
    "MiSS, Bat start",
    "MiSS, mini start",
    "OFT",
    "OFT, exact Cayley",
    "OFT, blocks shared",
    "OFT, bounded",
    "OSF",
    "PEANuT",
    "PSOFT",
    "RoAd",
    "RoAd, two of each",
    "RoAd, four of each",
    "SHiRA",
    "Super-tuning",
    "Poly",
)
_ON_EXPERTS = tuple(method for method in METHODS if "experts" in method)
_NEEDS_BITSANDBYTES = ("LoRA, LoftQ start",)
NOT_MADE: Mapping[str, frozenset[str]] = {
    "llama": frozenset((*_ON_EXPERTS, *_NEEDS_BITSANDBYTES)),
    "llama, tied": frozenset((*_ON_EXPERTS, *_NEEDS_BITSANDBYTES)),
    "mixtral": frozenset((*_NEEDS_BITSANDBYTES, "Adaption prompt")),
    "gpt2": frozenset((*_ON_EXPERTS, *_NEEDS_BITSANDBYTES, *_ONLY_LINEAR)),
}

# a part of the line with which midblock refuses, by method and base
_BY_KIND = {
    "LoRA, activated by tokens (aLoRA)": OPTIONS["alora_invocation_tokens"],
    "LoRA, layers replicated": OPTIONS["layer_replication"],
    "LoRA, PiSSA start by random SVD": "its start init_lora_weights='pissa_niter_4' took out of the base what loading",
    "Lily": TYPES["LILY"],
    "Poly": TYPES["POLY"],
    "X-LoRA": TYPES["XLORA"],
    "Shadow": TYPES["SHADOW"],
    "Adaption prompt": TYPES["ADAPTION_PROMPT"],
    "Multitask prompt tuning": TYPES["MULTITASK_PROMPT_TUNING"],
    "P-tuning": TYPES["P_TUNING"],
    "Prefix tuning": TYPES["PREFIX_TUNING"],
    "Cartridge": TYPES["CARTRIDGE"],
    "CPT": TYPES["CPT"],
}
_WITHOUT_BIAS = {
    "LoRA with a bias of its own": "Impossible to merge LoRA with `lora_bias=True` because the base layer has no bias",
    "BEFT": "Base layer has no bias, cannot merge bias adapter",
}
BEFORE_THE_TEXT = frozenset({"Prompt tuning"})  # a soft prompt, which some verbs take
REFUSED: Mapping[str, Mapping[str, str]] = {
    **{method: dict.fromkeys(EVERYWHERE, line) for method, line in _BY_KIND.items()},
    **{method: dict.fromkeys(LINEAR, line) for method, line in _WITHOUT_BIAS.items()},
}

HEAD = """# Adapters

Every way that PEFT {version} has to adapt a causal language model, on four kinds of base, as `analyze`, `probe`,
`swap`, `steer`, `merge` and `export` take it. `MIDBLOCK_WRITE_ADAPTERS=1 pytest tests/adapters` writes this page. Its
tests make each of these adapters, change every number in it that may change, and compare what midblock loads with
PEFT's unmerged model: hidden states at every layer and logits, float32, to {close:g} of the largest entry; and the rows
of weight change with the norms of what PEFT merges less the base.

- **✓** midblock's model is PEFT's unmerged one, states and weights.
- **prompt** a soft prompt, `MODEL+PROMPT`: `evaluate` and `probe` take it, with PEFT's logits; the other verbs look at
  weights, which it does not change, and refuse it in one line ([erase.md](erase.md)).
- **refused** in one line, which is below; nothing is computed.
- **–** PEFT does not make it: the method knows no such layers (GPT-2's are Conv1D), or the base has no experts.

How an adapter is read is in [tuning/export.md](tuning/export.md): LoRA, DoRA and replaced tensors as changes of the
base's tensors, everything else merged by PEFT with the model in memory, and the logits before and after compared.

"""

TAIL = """
## What else is seen to

- **Names.** PEFT finds tensors by name and passes over the rest without a word. What compilers, sharding and other
  classes put into names (`_orig_mod.`, `module.`, a missing `base_model.model.`, `language_model.` in the middle, …) is
  stripped on both sides; a note in `run.json` says so. A tensor that the base has no place for, a factor without its
  partner, one of another rank or shape, or one without entries (ZeRO-3, not gathered) is an error that names it.
- **Modules that the config names and the file lacks** count as unchanged, and a note names them.
- **Few blocks.** An adapter that changes some of the blocks only is said to, with their numbers.
- **Tied embeddings.** A change of one of two tied weights unties them, as in PEFT's unmerged model (its own merge
  changes both).
- **Bases.** An adapter on a quantised base (AWQ, GPTQ, bitsandbytes, …) or on another adapter is refused: give the
  full-precision original, or the merged folder, with `--base`.
- **Starts that alter the base** (PiSSA, OLoRA) are repeated by PEFT on loading. Where chance or data decided them
  (`pissa_niter_…`, LoRA-GA, CorDA) they cannot be, and the adapter is refused, unless it was converted when saved.
"""


def table(version: str, close: float) -> str:
    """The page."""
    lines = [f"| method | {' | '.join(BASES)} |", f"| --- {'| --- ' * len(BASES)}|"]
    lines += [f"| {method} | {' | '.join(_mark(method, base) for base in BASES)} |" for method in METHODS]
    refused = [f"- **{method}**: {next(iter(each.values()))}" for method, each in REFUSED.items()]
    refusals = "\n".join(["", "## Why what is refused is refused", "", *refused, ""])
    return HEAD.format(version=version, close=close) + "\n".join(lines) + "\n" + refusals + TAIL


def _mark(method: str, base: str) -> str:
    if method in NOT_MADE[base]:
        return "–"
    if method in BEFORE_THE_TEXT:
        return "prompt"
    return "refused" if base in REFUSED.get(method, {}) else "✓"
