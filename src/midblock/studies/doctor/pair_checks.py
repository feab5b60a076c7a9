"""The checks that stand before a run's work, asked together: what the run would stop with, and what it would note.

Every check is the run's own; none is written anew here. Cost: headers of the weight files, the tokenizers, the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midblock.analysis.prompts import Prompts, prepare_prompts, with_general
from midblock.analysis.samples import draw_samples
from midblock.analysis.settings import AnalysisSettings
from midblock.analysis.work import kinds_of
from midblock.base import LayerPlan, MidblockError
from midblock.base.files import size_text
from midblock.checkpoints import Checkpoint, Pair, Variant, check_readable, unread_note
from midblock.checkpoints.footprint import own_dtype
from midblock.checkpoints.models import check_files
from midblock.checkpoints.skeleton import anatomy_of, skeleton_of
from midblock.checkpoints.weight_files import find_weight_files
from midblock.studies.doctor.finding import CARE, STOPS, TOLD, Finding

RECURRENT = "attention"  # kinds of layers without this word keep a state instead of looking back
PEFT = 'pip install "midblock[train]"'


@dataclass(frozen=True)
class Examined:
    """What the checks left: findings, and the prompts where they could be read."""

    findings: list[Finding]
    prompts: Prompts | None = None


def examine(pair: Pair, data: str | None, settings: AnalysisSettings) -> Examined:
    """Ask everything that can be asked of a pair without loading a model.

    Args:
        data: the dataset reference; None reads none.
    """
    found = [each for variant in pair for each in _of_variant(variant)]
    if pair.tuned:
        found += _caught(lambda: [Finding(TOLD, note.rstrip(".")) for note in pair.notes()])
    found += _caught(lambda: _plan(pair, settings))
    if data is None:
        return Examined(found)
    try:
        prompts = _prompts(pair, data, settings)
    except MidblockError as error:
        return Examined([*found, Finding.of_error(error)])
    if settings.template == "raw":
        found += _template(pair)
    return Examined([*found, *(Finding(TOLD, note.rstrip(".")) for note in prompts.notes())], prompts)


def _plan(pair: Pair, settings: AnalysisSettings) -> list[Finding]:
    """Nothing, where the blocks asked for are there."""
    LayerPlan.parse(settings.layers, pair.blocks)
    return []


def _prompts(pair: Pair, data: str, settings: AnalysisSettings) -> Prompts:
    """The first sample of prompts and the general texts, read as an analysis reads them."""
    drawn = draw_samples(data, settings)
    return with_general(pair, prepare_prompts(pair, drawn[0], settings, views="views" in kinds_of(settings)), settings)


def file_bytes(pair: Pair) -> int:
    """Bytes of all weight files that a run reads, an adapter's own included."""
    checkpoints = [each.checkpoint for each in pair if each.checkpoint is not None]
    return sum(path.stat().st_size for each in checkpoints for path in _files(each))


def _files(checkpoint: Checkpoint) -> Iterator[Path]:
    yield from find_weight_files(checkpoint.folder, allow_pickle=checkpoint.allow_pickle).files
    own = [each.folder for each in (checkpoint.adapter, *checkpoint.carriers) if each is not None]
    for folder in own:
        yield from sorted(folder.glob("*.safetensors")) if folder is not None else ()


def _of_variant(variant: Variant) -> list[Finding]:
    checkpoint = variant.checkpoint
    if checkpoint is None:
        return []
    facts = _caught(lambda: _facts(variant, checkpoint))
    if any(each.level == STOPS for each in facts):
        return facts
    checks = _caught(lambda: check_files(checkpoint))
    return [*facts, *checks, *_caught(lambda: _weights(variant, checkpoint))]


def _facts(variant: Variant, checkpoint: Checkpoint) -> list[Finding]:
    """What kind of model it is, in a line, and a line for what is out of the ordinary."""
    skeleton = skeleton_of(checkpoint.config, trust_remote_code=checkpoint.trust_remote_code)
    anatomy = anatomy_of(skeleton)
    size = sum(path.stat().st_size for path in find_weight_files(checkpoint.folder, allow_pickle=True).files)
    count = sum(value.numel() for value in skeleton.parameters())
    kind = str(own_dtype(checkpoint)).removeprefix("torch.")
    what = f"{variant.name}: {type(skeleton).__name__}, {len(anatomy)} blocks of width {anatomy.width}, "
    what += f"{count / 1e6:,.0f} M parameters, {kind}, files of {size_text(size)}"
    return [Finding(TOLD, what), *(Finding(TOLD, f"{variant.name}: {each}") for each in _traits(checkpoint, anatomy))]


def _traits(checkpoint: Checkpoint, anatomy: Any) -> Iterator[str]:
    config = anatomy.config
    if anatomy.head.weight is anatomy.embedding.weight:
        yield "head and embedding are tied"
    if checkpoint.pickled:
        yield "its weights are pickled: reading them can run code of whoever made them"
    if any(each.stacked for each in anatomy.projections.values()):
        yield "a mixture of experts: all of them count in memory, those that a token is sent to in time"
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    if others := [kind for kind in kinds if RECURRENT not in kind or "linear" in kind]:
        yield f"a hybrid: blocks of the kinds {', '.join(kinds)}; {', '.join(others)} keep a state"
    if any(each.block is None and each.part == "other" for each in anatomy.projections.values()):
        yield "it has parts beside the decoder (another modality): they are loaded and not measured"


def _weights(variant: Variant, checkpoint: Checkpoint) -> list[Finding]:
    """What a comparison of weights would say; how an adapter or codes are treated."""
    adapter = checkpoint.adapter
    if adapter is not None and adapter.settings.inexpressible:
        what = f"{variant.name}: {adapter.settings.inexpressible} is no low-rank change"
        return [*_peft(), Finding(TOLD, f"{what}: PEFT merges it, and weights are compared in memory")]
    with variant.tensors() as tensors:
        check_readable(tensors)
        notes = [*unread_note(tensors)]
        if tensors.coded:
            kinds = sorted({codes.kind for codes in tensors.coded.values()})
            notes.append(f"{variant.name}: {len(tensors.coded)} weights are stored as {', '.join(kinds)} codes, read "
                         "as the numbers that they stand for")  # fmt: skip
    return [*(_peft() if adapter is not None else []), *(Finding(TOLD, note.rstrip(".")) for note in notes)]


def _peft() -> list[Finding]:
    """Whether PEFT, which merges adapters, can be imported."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        return [Finding(STOPS, f"peft, which is needed to read an adapter, cannot be imported: {error}", PEFT)]
    return []


def _template(pair: Pair) -> list[Finding]:
    tokenizers = [pair.tokenizer, *pair.other_tokenizers.values()]
    if not any(getattr(each, "chat_template", None) for each in tokenizers):
        return []
    what = "prompts are read as raw text, and a chat template is there"
    return [Finding(CARE, what, "--template chat reads them as the tuned model was likely trained")]


def _caught(act: Callable[[], list[Finding] | None]) -> list[Finding]:
    """What a check says, or what it stops with."""
    try:
        return act() or []
    except MidblockError as error:
        return [Finding.of_error(error)]
