"""`erase`: a soft prompt that switches off what tuning taught, without touching a weight, and how far that goes.

J = w · MSE of the carrier's write channels at the last prompt token + β · KL(base‖tuned with the prompt) + γ · mean
‖P_i‖². Source: SFT-Eraser (P3). Ours: batches, prompts matched one by one, the best prompt chosen on held-out prompts,
several starts, nulls, prompts unlike the training's, and how soon tuning brings the behaviour back. Cost: a step is a
forward and a backward pass over its tokens. Described in docs/erase.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from midblock.base import MidblockError, Progress, divide
from midblock.base.json_file import read_object
from midblock.carriers.carve.taught import Taught
from midblock.carriers.erase.cells import Cells, cells_of, check_channels
from midblock.carriers.erase.samples import TEST, TRAIN, Samples
from midblock.carriers.erase.settings import EraseSettings
from midblock.carriers.erase.work import Erasing
from midblock.checkpoints import LoadSettings, Pair, Variant, load_pair, quiet_transformers
from midblock.data import local_places
from midblock.data.derived import DEFAULT_PROMPTS
from midblock.evaluation import check_head
from midblock.runs.lending import lent
from midblock.runs.reading import common_tokenizer, few_note
from midblock.runs.request import draft_of, models_of
from midblock.runs.run import Bench, Outcome, Ready, carry_out
from midblock.runs.where import Where

TRIES = "lower --batch-size, or try --dtype bfloat16"


def erase(
    carrier: str, *, base: str, sft: str | None = None, data: str = DEFAULT_PROMPTS, **options: Any
) -> dict[str, Any]:
    """Train a soft prompt that makes a tuned model do what its base does, and measure what it does.

    Args:
        carrier: the model whose behaviour is to go: a carrier's folder, or a plainly tuned model.
        base: the model it was tuned from.
        sft: a plainly tuned model to hold beside a carrier in the grid; by default the one the carrier was carved from.
        data: prompts, any dataset reference, or one that names the behaviour (`style:DATA`).
        **options: fields of `EraseSettings` (`behaviour`, `grid`, `starts`, …), of `LoadSettings`, and of `Where`:
            `output_dir` (needed: it gets `prompt/`, in PEFT's format), `resume`, `overwrite`, …

    Returns:
        `summary.json`.

    Raises:
        MidblockError: prompts that leave no room, a carrier of another base, or anything else the user can mend; what
            was found until then stays for `resume`.

    Example:
        >>> found = erase("carved", base=base, data="prompts.jsonl", behaviour="style", output_dir="erased")
        >>> found["cells"][0]["verdict"]
        'works'
    """
    where, loading, settings = divide(options, Where, LoadSettings, EraseSettings)
    folder = where.needed("erase")
    settings = replace(settings, behaviour=Taught.of(data, settings.behaviour).behaviour)
    if loading.device_map is not None:
        raise MidblockError("a soft prompt is trained on one device", hint="leave --device-map out")
    pair = load_pair(base, carrier, **asdict(loading))
    masks = masks_of(pair.tuned[0])
    check_channels(settings, bool(masks))
    if settings.grid:
        pair = _with_sft(pair, base, sft, loading)
    elif sft is not None:
        raise MidblockError("a second model is held beside the first in the grid", hint="--grid, or leave --sft out")
    models = tuple(variant.name for variant in pair.tuned)
    asked = cells_of(settings, models, bool(masks))
    named = {"carrier": carrier, "base": base, **({"sft": sft} if sft is not None else {})}
    other = local_places(settings.other) if settings.other else []
    draft = draft_of("erase", pair, data, settings, pair.base.loading, models=named, sources=other)

    def prepare(progress: Progress) -> Ready:
        tokenizer, samples = _read(pair, data, settings)
        _load(pair, samples, progress)
        tuned = {variant.name: variant for variant in pair.tuned}
        cells = Cells(pair.base, tuned, masks, samples, settings, tokenizer.bos_token_id)
        work = Erasing(cells, asked, settings, tokenizer)

        def measure(bench: Bench) -> Outcome:
            with quiet_transformers():
                outcome = work.run(bench)
            return replace(outcome, record={"models": models_of(pair)})

        notes = [*pair.notes(), *few_note(len(samples.kinds[TEST]), "prompts")]
        facts = {"seed": settings.seed, "data": {**samples.facts(), "template": settings.template}}
        return Ready(draft.decided(samples.hashes()), measure, facts, notes)

    with lent(pair, tries=TRIES):
        carry_out(draft, prepare, where)
    return read_object(folder / "summary.json")


def masks_of(variant: Variant) -> tuple[Mapping[tuple[int, str], Any], ...]:
    """The masks of the carriers that a model holds; none of a plainly tuned model."""
    return tuple(each.masks for each in variant.checkpoint.carriers) if variant.checkpoint is not None else ()


def _with_sft(pair: Pair, base: str, sft: str | None, loading: LoadSettings) -> Pair:
    """The pair with the plainly tuned model behind the carrier's: by default the one the carrier was carved from."""
    carrier = pair.tuned[0]
    carved = carrier.checkpoint.carriers[0].config.tuned if carrier.checkpoint is not None else ""
    return load_pair(base, carrier.reference, sft or carved, **asdict(loading))


def _read(pair: Pair, data: str, settings: EraseSettings) -> tuple[Any, Samples]:
    samples = Samples.of(data, settings, pair.tokenizer, pair.base.config)
    tokenizer = common_tokenizer(pair, samples.kinds[TRAIN].examples, settings.template)
    if tokenizer is not pair.tokenizer:  # the one that has the chat template
        samples = Samples.of(data, settings, tokenizer, pair.base.config)
    largest = max(max(row) for each in samples.kinds.values() for row in each.rows)
    if largest >= pair.vocabulary:
        what = f"token id {largest} of the prompts is beyond the {pair.vocabulary} ids all models share"
        raise MidblockError(what, hint="use --template raw, or models with the same added tokens")
    return tokenizer, samples


def _load(pair: Pair, samples: Samples, progress: Progress) -> None:
    """Load the models, once it was seen that their heads can be run alone.

    Raises:
        MidblockError: they cannot, or a tuned model is the base.
    """
    advance = progress.phase("loading models", 1 + len(pair.tuned))
    for variant in pair:
        check_head(variant.name, variant.model.eval(), samples.kinds[TRAIN].batches[0])
        if variant is not pair.base and _same_weights(pair.base.model, variant.model):
            what = f"{variant.name} has the weights of its base: there is nothing to erase"
            raise MidblockError(what, hint="--base names the model before tuning")
        advance(1)


def _same_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=False)
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
