"""Put parts of one model into another, by reference: no weight is copied, and leaving puts everything back.

Cost: an assignment a part. Described in docs/causes/swap.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy, value_of
from midblock.checkpoints.decoder_names import name_in

# What configs call that which decides the masks and positions that blocks are given.
GIVEN = ("rope_parameters", "sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "alibi",
         "attention_chunk_size")  # fmt: skip


@contextmanager
def exchanged(
    host: nn.Module, donor: nn.Module, blocks: Collection[int] = (), *, head: bool = False, embedding: bool = False
) -> Iterator[int]:
    """Inside the `with`, `host` computes with parts of `donor`, which stay the donor's own modules.

    Args:
        blocks: indices of decoder blocks.
        head: the final norm and the head.
        embedding: whatever stands before block 0 (learned positions and norms included). A head tied to it stays.

    Yields:
        How many modules were exchanged.

    Raises:
        MidblockError: there is no such block, or parts that differ in shape or precision; the tensor is named.
    """
    ours, theirs = Anatomy.of(host), Anatomy.of(donor)
    check_architecture(ours, theirs)
    if len(ours) != len(theirs):
        raise MidblockError(f"the host has {len(ours)} blocks, the donor {len(theirs)}")
    if beyond := [block for block in blocks if not 0 <= block < len(ours)]:
        raise MidblockError(f"block {beyond[0]} is not there; the models have 0 to {len(ours) - 1}")
    paths = [f"{ours.names['blocks']}.{block}" for block in sorted(set(blocks))]
    paths += [ours.names["final_norm"], ours.names["head"]] if head else []
    paths += _before_blocks(host, ours) if embedding else []
    given = {path: donor.get_submodule(name_in(theirs.names, ours.names, path)) for path in paths}
    for path in paths:
        check_alike(path, host.get_submodule(path), given[path])
    check_given(ours, theirs)
    before = {path: host.get_submodule(path) for path in paths}
    own = dict(ours.backbone.named_parameters(recurse=False)) if embedding else {}
    other = dict(theirs.backbone.named_parameters(recurse=False))
    try:
        for path, module in given.items():
            _put(host, path, module)
        for name in own:
            ours.backbone.register_parameter(name, other[name])
        yield len(paths) + len(own)
    finally:
        for path, module in before.items():
            _put(host, path, module)
        for name, value in own.items():
            ours.backbone.register_parameter(name, value)


def check_architecture(host: Anatomy, donor: Anatomy) -> None:
    """Raise MidblockError unless two decoders keep their parts in the same places and call attention alike.

    One may stand inside a multimodal model: then its places are those in its backbone.
    """
    inside = ("blocks", "embedding", "final_norm")
    if part := next((part for part in inside if _inner(host, part) != _inner(donor, part)), None):
        what = f"{part.replace('_', ' ')}: {host.names[part]} in one model, {donor.names[part]} in the other"
        raise MidblockError(what, hint="swap models of one architecture")
    # one kernel's mask means nothing, or something else, to another: a block brought over would see the future
    kernels = [str(getattr(anatomy.config, "_attn_implementation", None)) for anatomy in (host, donor)]
    if kernels[0] != kernels[1]:
        what = f"attention runs as {kernels[0]} in one model and as {kernels[1]} in the other"
        raise MidblockError(what, hint="load both with one --attn-implementation")


def _inner(anatomy: Anatomy, part: str) -> str:
    """A part's path in the backbone."""
    return anatomy.names[part].removeprefix(f"{anatomy.names['backbone']}.")


def check_given(host: Anatomy, donor: Anatomy) -> None:
    """Raise MidblockError unless blocks of two models are given alike masks and position embeddings.

    A block brought over is given the host's.
    """
    for name in GIVEN:
        ours, theirs = (value_of(anatomy.config, name) or None for anatomy in (host, donor))
        if ours != theirs:
            what = f"{name} is {ours} in one model and {theirs} in the other"
            raise MidblockError(what, hint="their blocks cannot stand in for each other")


def check_blocks_alike(host: Anatomy, donor: Anatomy) -> None:
    """Compare blocks and final norm of two models tensor by tensor.

    Raises:
        MidblockError: models of two architectures, or a tensor that differs or is on one side only, or that
            two blocks share; it is named.
    """
    check_architecture(host, donor)
    _check_not_shared(host)
    for position, (ours, theirs) in enumerate(zip(host.blocks, donor.blocks, strict=True)):
        check_alike(f"{host.names['blocks']}.{position}", ours, theirs)
    check_alike(host.names["final_norm"], host.final_norm, donor.final_norm)
    check_given(host, donor)


def _check_not_shared(anatomy: Anatomy) -> None:
    """Raise MidblockError where two blocks are partly one and the same, so that neither can be exchanged alone."""
    owners: dict[int, int] = {}
    for position, block in enumerate(anatomy.blocks):
        for name, value in block.named_parameters():
            if (first := owners.setdefault(id(value), position)) != position:
                what = f"blocks {first} and {position} share the weight {anatomy.names['blocks']}.{first}.{name}"
                raise MidblockError(what, hint="neither can be exchanged alone")


def check_alike(path: str, ours: nn.Module, theirs: nn.Module) -> None:
    """Raise MidblockError unless two modules have the same tensors in the same shapes and precision."""
    a, b = _tensors(ours), _tensors(theirs)
    for name in sorted(a.keys() ^ b.keys()):
        raise MidblockError(f"{path}.{name} is in one of the models only", hint="swap models of one architecture")
    for name, tensor in a.items():
        if tensor.shape != b[name].shape:
            what = f"{path}.{name} is {list(tensor.shape)} in one model and {list(b[name].shape)} in the other"
            raise MidblockError(what, hint="swap models tuned from the same base")
        if tensor.dtype != b[name].dtype:
            what = f"{path}.{name} is {tensor.dtype} in one model and {b[name].dtype} in the other".replace(
                "torch.", ""
            )
            raise MidblockError(what, hint="load both with one --dtype")


def _tensors(module: nn.Module) -> Mapping[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _before_blocks(model: nn.Module, anatomy: Anatomy) -> list[str]:
    """Paths of the backbone's parts with weights, besides its blocks and what comes behind them."""
    behind = {id(anatomy.blocks), id(anatomy.final_norm)}
    prefix = f"{anatomy.names['backbone']}." if anatomy.names["backbone"] else ""
    found = [
        prefix + name
        for name, child in anatomy.backbone.named_children()
        if not any(id(part) in behind for part in child.modules())
        and name != "project_out"
        and any(True for _ in child.parameters())
    ]
    paths = {id(module): path for path, module in model.named_modules()}
    own = paths[id(anatomy.embedding)]
    return found if any(own == path or own.startswith(f"{path}.") for path in found) else [*found, own]


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent).register_module(name, module)
