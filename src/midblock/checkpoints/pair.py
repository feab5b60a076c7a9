"""Pair: a base model and one or several models tuned from it, checked to be comparable layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from midblock.base import MidblockError, user_path
from midblock.base.files import stamps
from midblock.base.names import BASE as BASE
from midblock.base.names import own_names
from midblock.checkpoints.adapter_notes import adapter_notes
from midblock.checkpoints.blockwise import BlockwiseModel
from midblock.checkpoints.checkpoint import Checkpoint
from midblock.checkpoints.effective import EffectiveTensors
from midblock.checkpoints.models import load_model
from midblock.checkpoints.settings import LoadSettings
from midblock.checkpoints.weight_files import find_weight_files


@dataclass
class Variant:
    """One model of a pair: a checkpoint, a model in memory, or both.

    Attributes:
        name: what tables and figures call it; "base" for the base.
        checkpoint: where its weights lie, None for a model that exists in memory only.
        loading: how the model is loaded when it is first needed.
        parts: the model of which a part at a time is in memory, while a pair is walked block by block.
    """

    name: str
    checkpoint: Checkpoint | None
    loading: LoadSettings = field(default_factory=LoadSettings)
    loaded: nn.Module | None = None
    parts: BlockwiseModel | None = None

    @property
    def model(self) -> nn.Module:
        """The model, loaded on first use; one of parts has the weights of those that are loaded just now."""
        if self.parts is not None:
            return self.parts.model
        if self.loaded is None:
            if self.checkpoint is None:
                raise MidblockError(f"{self.name} has neither a model nor a checkpoint")
            self.loaded = load_model(self.checkpoint, self.loading)
        return self.loaded

    @cached_property
    def config(self) -> Any:
        config: Any = self.loaded.config if self.loaded is not None else self.checkpoint.config  # type: ignore[union-attr]
        return config.get_text_config() if hasattr(config, "get_text_config") else config

    @property
    def reference(self) -> str:
        return self.checkpoint.reference.text if self.checkpoint else "in memory"

    def tensors(self) -> EffectiveTensors:
        """Open its tensors: its files, or the model where it has none or its adapter is no change of tensors.

        Raises:
            MidblockError: a broken file, or an adapter that does not fit its base.
        """
        if self.checkpoint is None or self.merged_by_peft:
            return EffectiveTensors.of_model(self.model, self.name)
        return EffectiveTensors.of_checkpoint(self.checkpoint, self.name)

    @property
    def merged_by_peft(self) -> bool:
        """Whether it is an adapter that is no change of tensors, so that its weights are those of the merged model."""
        adapter = self.checkpoint.adapter if self.checkpoint is not None else None
        return adapter is not None and adapter.settings.inexpressible is not None

    def as_record(self) -> dict[str, Any]:
        """What `run.json` says about it; hashing the weights reads them once."""
        role = BASE if self.name == BASE else "tuned"
        described: dict[str, Any] = {"name": self.name, "role": role, "reference": self.reference}
        if self.checkpoint is not None:
            described["weight_hash"] = self.checkpoint.weight_hash()
        if self.loaded is not None or self.parts is not None:
            described["dtype"] = str(next(self.model.parameters()).dtype).removeprefix("torch.")
            described["parameters"] = sum(value.numel() for value in self.model.parameters())
        return described

    def files(self) -> list[list[str | int]]:
        """The stamp of each weight file; empty in memory."""
        if self.checkpoint is None:
            return []
        files = list(find_weight_files(self.checkpoint.folder, allow_pickle=self.checkpoint.allow_pickle).files)
        if self.checkpoint.adapter is not None:
            files += sorted(self.checkpoint.adapter.folder.glob("adapter_*"))
        for carrier in self.checkpoint.carriers:
            files += sorted(carrier.folder.glob("carrier*")) if carrier.folder is not None else []
        if self.checkpoint.prompt is not None and self.checkpoint.prompt.folder is not None:
            files += sorted(self.checkpoint.prompt.folder.glob("*"))
        return stamps(files)


@dataclass
class Pair:
    """A base and its tuned models.

    Attributes:
        base: the model before tuning, named "base".
        tuned: the models after it, names unique.
        given_tokenizer: the one tokenizer of models in memory; None where checkpoints bring their own.
    """

    base: Variant
    tuned: tuple[Variant, ...]
    given_tokenizer: Any = None

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer, whose ids every model is fed; loaded on first use."""
        return self.given_tokenizer or self.base.checkpoint.tokenizer()  # type: ignore[union-attr]

    @cached_property
    def other_tokenizers(self) -> Mapping[str, Any]:
        """Those that tuned models ship, by name; compared with the base's, and searched for a chat template."""
        return {
            variant.name: variant.checkpoint.tokenizer()
            for variant in self.tuned
            if variant.checkpoint and variant.checkpoint.has_tokenizer
        }

    @classmethod
    def of_models(cls, base: nn.Module, tuned: Mapping[str, nn.Module], tokenizer: Any) -> Pair:
        """Build a pair from models in memory; `tuned` maps a name to each tuned model.

        Raises:
            MidblockError: a model that PEFT still wraps, a name that tables keep for something else or cannot show, or
                models that differ in depth or width.
        """
        for name, shown in zip(tuned, own_names(list(tuned), list(tuned)), strict=True):
            if name != shown:
                raise MidblockError(f"a tuned model cannot be called {name!r}", hint=f"{shown!r} would do")
        for name, model in {BASE: base, **tuned}.items():
            if hasattr(model, "merge_and_unload"):
                raise MidblockError(f"{name} is wrapped by PEFT", hint="call merge_and_unload() first")
        variants = [Variant(name, None, loaded=model) for name, model in tuned.items()]
        return cls(Variant(BASE, None, loaded=base), tuple(variants), tokenizer).checked()

    def __iter__(self) -> Iterator[Variant]:
        yield self.base
        yield from self.tuned

    @property
    def in_parts(self) -> Mapping[str, BlockwiseModel]:
        """The models of a pair that is walked block by block, by name; empty where they are whole."""
        return {variant.name: variant.parts for variant in self if variant.parts is not None}

    def open_parts(self) -> None:
        """Walk the models block by block from now on, until `close_parts`.

        Raises:
            MidblockError: one lies in no file, or cannot be read part by part.
        """
        try:
            for variant in self:
                if variant.checkpoint is None:
                    what = f"{variant.name} is in memory, so it is not walked block by block"
                    raise MidblockError(what, hint="give it as files, or leave out max_memory")
                variant.parts = BlockwiseModel.of(variant.checkpoint, variant.loading, variant.name)
        except BaseException:
            self.close_parts()
            raise

    def close_parts(self) -> None:
        """Let go of models in parts; what needs a model after that loads it whole."""
        for variant in self:
            if variant.parts is not None:
                variant.parts.close()
                variant.parts = None

    @property
    def blocks(self) -> int:
        """L, the number of decoder blocks, the same for all."""
        return int(self.base.config.num_hidden_layers)

    @property
    def vocabulary(self) -> int:
        """V, the number of token ids that every model knows (the smallest vocabulary)."""
        return min(int(variant.config.vocab_size) for variant in self)

    @property
    def places(self) -> list[Path]:
        """Files and folders that the models are read from; empty for models in memory."""
        return [place for variant in self if variant.checkpoint is not None for place in variant.checkpoint.places]

    def checked(self) -> Pair:
        """Return self if every tuned model has the base's depth and width.

        Raises:
            MidblockError: the first difference, with both numbers.
        """
        for variant in self.tuned:
            for size, title in (("num_hidden_layers", "decoder blocks"), ("hidden_size", "channels")):
                ours, theirs = getattr(self.base.config, size), getattr(variant.config, size)
                if ours != theirs:
                    what = f"{variant.name} has {theirs} {title}, the base {ours}"
                    raise MidblockError(what, hint="compare models tuned from the same base")
        return self

    def notes(self) -> list[str]:
        """What a reader of the results must know about this pair."""
        found = [note for variant in self.tuned or (self.base,) if (note := _other_name(variant))]
        found += [note for variant in self.tuned if (note := self._other_base(variant))]
        found += [
            note for each in self for note in (adapter_notes(each.checkpoint, each.name) if each.checkpoint else ())
        ]
        found += [
            f"{variant.name} ships no tokenizer: the base's was used."
            for variant in self.tuned
            if variant.checkpoint and not variant.checkpoint.has_tokenizer
        ]
        sizes = {variant.name: int(variant.config.vocab_size) for variant in self}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
            found.append(f"Vocabularies differ in size ({listed}): the {self.vocabulary} shared rows are compared.")
        return found

    def _other_base(self, variant: Variant) -> str | None:
        if variant.checkpoint is None or variant.checkpoint.adapter is None:
            return None
        put_on, settings = variant.checkpoint.adapter.base, variant.checkpoint.adapter.settings
        named = settings.base
        if not named or put_on.text != self.base.reference or named == put_on.text:
            return None
        if put_on.kind == "hub" and named == put_on.location and settings.revision in (None, put_on.revision):
            return None
        if put_on.kind == "folder" and _is_place(named, put_on.path):
            return None
        return f"The adapter {variant.name} names {named} as its base; it was put on {self.base.reference}, as asked."


def _is_place(named: str, place: Path) -> bool:
    try:
        return user_path(named).resolve() == place.resolve()
    except MidblockError:
        return False  # it names no place at all


def _other_name(variant: Variant) -> str | None:
    """What a reader must know of a model whose own name tables do not take."""
    if variant.checkpoint is None or variant.name in (variant.checkpoint.name, variant.reference):
        return None
    return f"{variant.reference} is called {variant.name} in tables and figures."
