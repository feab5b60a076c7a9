"""Checkpoint: a model reference resolved to files on this machine; nothing heavy is loaded until it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from midblock.base import MidblockError
from midblock.base.plain_file import check_plain_folder
from midblock.checkpoints.adapter import CONFIG, MERGE_FIRST, Adapter
from midblock.checkpoints.builtin import builtin_folder
from midblock.checkpoints.carrier import Carrier
from midblock.checkpoints.carrier_base import base_of, check_base
from midblock.checkpoints.config import has_tokenizer, load_config, load_tokenizer, read_config
from midblock.checkpoints.fitting import check_counts, check_quantisation
from midblock.checkpoints.gguf import gguf_folder
from midblock.checkpoints.hub import hub_folder
from midblock.checkpoints.quantised_base import check_plain
from midblock.checkpoints.reference import ModelReference
from midblock.checkpoints.soft_prompt import SoftPrompt, is_soft_prompt
from midblock.checkpoints.tensors import TensorReader, content_hash
from midblock.checkpoints.weight_files import find_weight_files
from midblock.checkpoints.weight_hash import hash_of_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk.

    Attributes:
        reference: as the user named it.
        folder: holds config, tokenizer and weights: the hub's snapshot, a cache folder, or the user's own; of an
            adapter or a carrier, its base's.
        adapter: the change on top of `folder`, or None.
        prompt: the soft prompt that stands before every prompt, or None.
        allow_pickle, trust_remote_code: what the user consented to.
        carriers: what is put into the weights of `folder`; never together with an adapter.
    """

    reference: ModelReference
    folder: Path
    adapter: Adapter | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    carriers: tuple[Carrier, ...] = ()
    prompt: SoftPrompt | None = None

    @property
    def name(self) -> str:
        """Short name for tables and figures."""
        return self.reference.label

    @property
    def places(self) -> tuple[Path, ...]:
        """Files and folders that it is read from."""
        put_on = (self.adapter, *self.carriers, self.prompt)
        folders = (each.folder for each in put_on if each is not None and each.folder is not None)
        return (*self.reference.places, self.folder, *folders)

    @property
    def pickled(self) -> bool:
        """Whether the weights are pickled (only ever so with the user's consent)."""
        return find_weight_files(self.folder, allow_pickle=self.allow_pickle).pickled

    @property
    def config(self) -> PretrainedConfig:
        """A fresh copy of the model's config."""
        return load_config(self.folder, trust_remote_code=self.trust_remote_code)

    @property
    def has_tokenizer(self) -> bool:
        """Whether it ships a tokenizer: of an adapter, in its own folder or in its base's."""
        return has_tokenizer(self.folder) or (self.adapter is not None and has_tokenizer(self.adapter.folder))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer: the adapter's own if it ships one, else the folder's.

        Raises:
            MidblockError: there is none, or it is broken.
        """
        own = self.adapter.folder if self.adapter and has_tokenizer(self.adapter.folder) else self.folder
        return load_tokenizer(own, trust_remote_code=self.trust_remote_code)

    def tensors(self) -> TensorReader:
        """Open the weights in `folder`, of an adapter the base's.

        Raises:
            MidblockError: as `TensorReader.open`.
        """
        return TensorReader.open(self.folder, allow_pickle=self.allow_pickle)

    @property
    def bare(self) -> Checkpoint:
        """The same without its soft prompt."""
        return replace(self, prompt=None)

    def weight_hash(self) -> str:
        """SHA-256 that changes with any weight: of the tensors, and of what is put on them if there is something."""
        if self.prompt is None:
            return self._hash_of_weights()
        return hashlib.sha256(repr((self._hash_of_weights(), self.prompt.content_hash)).encode()).hexdigest()

    def _hash_of_weights(self) -> str:
        """Of the tensors, an adapter's and its scales, and carriers'."""
        base = hash_of_files(self.folder, allow_pickle=self.allow_pickle)
        if self.carriers:
            return hashlib.sha256(repr((base, *(each.content_hash() for each in self.carriers))).encode()).hexdigest()
        if self.adapter is None:
            return base
        with self.adapter.tensors() as tensors:
            parts = (base, content_hash(tensors), *self.adapter.settings.scaling)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def open_checkpoint(
    reference: str | ModelReference,
    *,
    base: str | None = None,
    adapter_base: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Resolve a model reference to files, downloading or converting if need be, and check that they can be used.

    Args:
        base: of an adapter or a carrier, the base to use instead of the one it names; refused for anything else.
        adapter_base: as `base`, but ignored if the reference turns out to be neither.
        allow_pickle: read pickled weights where there are no safetensors.
        trust_remote_code: let transformers run code that the checkpoint ships.

    Raises:
        MidblockError: the reference leads nowhere, config or weights are missing, broken, or need a consent; a carrier
            is damaged or of another base.
    """
    if isinstance(reference, str):
        reference = ModelReference.parse(reference)
    last = reference.added[-1] if reference.added else reference
    if last.kind == "adapter" and is_soft_prompt(last.path):
        prompt = SoftPrompt.open(last.path)
        below = open_checkpoint(
            reference.below if reference.added else base or prompt.base,
            base=base if reference.added else None,
            adapter_base=adapter_base,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )
        return _with_prompt(below, prompt, reference)
    if reference.kind in ("carrier", "sum"):
        given = base or adapter_base if reference.kind == "carrier" else reference.location
        added = reference.added or (reference,)
        return _carrying(reference, given, added, allow_pickle, trust_remote_code)
    folder = _local_folder(reference, allow_pickle, trust_remote_code)
    check_plain_folder(folder)
    if reference.kind == "adapter" or ((folder / CONFIG).exists() and not (folder / "config.json").exists()):
        adapter = Adapter.open(folder, base or adapter_base)
        below = open_checkpoint(adapter.base, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
        if below.adapter is not None or below.carriers:
            kind = "an adapter" if below.adapter else "a carrier"
            raise MidblockError(f"the base of the adapter {reference} is {kind} itself", hint=MERGE_FIRST)
        if below.prompt is not None:
            raise MidblockError(f"the base of the adapter {reference} has a soft prompt", hint="name the model alone")
        check_plain(below.folder, f"the adapter {folder}")
        return Checkpoint(reference, below.folder, adapter, allow_pickle, trust_remote_code)
    if base is not None:
        raise MidblockError(f"{reference} is no adapter and no carrier, so it has no base", hint="leave out --base")
    checkpoint = Checkpoint(reference, folder, None, allow_pickle, trust_remote_code)
    stated = read_config(folder)
    find_weight_files(folder, allow_pickle=allow_pickle)
    check_counts(stated, folder, allow_pickle=allow_pickle)
    check_quantisation(stated, folder, allow_pickle=allow_pickle)
    load_config(folder, trust_remote_code=trust_remote_code)
    return checkpoint


def _with_prompt(below: Checkpoint, prompt: SoftPrompt, reference: ModelReference) -> Checkpoint:
    if below.prompt is not None:
        raise MidblockError(f"{reference} names two soft prompts", hint="a model takes one")
    return replace(below, reference=reference, prompt=prompt)


def _carrying(
    reference: ModelReference, given: str | None, added: Sequence[ModelReference], allow_pickle: bool, remote_code: bool
) -> Checkpoint:
    """Carriers on their base.

    Args:
        given: the base; None for the one that the carrier names.
        added: what is put on it.
    """
    for term in added:
        if term.kind != "carrier":
            soft = is_soft_prompt(term.path)
            hint = "a soft prompt comes last" if soft else "give it alone, it names its base"
            kind = "a soft prompt: nothing is added to it" if soft else "an adapter: it is added to nothing"
            raise MidblockError(f"{term} is {kind}", hint=hint)
    carriers = tuple(Carrier.open(term.path) for term in added)
    named = given or base_of(carriers[0])
    below = open_checkpoint(named, allow_pickle=allow_pickle, trust_remote_code=remote_code)
    if below.adapter is not None:
        raise MidblockError(f"the base of {carriers[0].name} is an adapter", hint=MERGE_FIRST)
    check_plain(below.folder, carriers[0].name)
    for carrier in carriers:
        check_base(carrier, hash_of_files(below.folder, allow_pickle=below.allow_pickle), below.reference.text)
    return replace(below, reference=reference, carriers=(*below.carriers, *carriers))


def _local_folder(reference: ModelReference, allow_pickle: bool, trust_remote_code: bool) -> Path:
    if reference.kind == "builtin":
        return builtin_folder(reference.location)
    if reference.kind == "gguf":
        return gguf_folder(reference.path)
    if reference.kind == "hub":
        return hub_folder(reference, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    return reference.path
