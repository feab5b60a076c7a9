"""Where each parameter of a decoder sits and what it does there, read off the module tree.

The anatomy's own paths say which block holds a parameter, never the first number in its name; the modules on the way
say whether a `gate_proj` is the MLP's or attention's (`kinds.py`), and so which role its name means (`roles.py`). What
is not certain keeps its own path in the block for a role, so that nothing is dropped and nothing is miscounted. Cost: a
look at the modules on the way to the parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn

from midblock.checkpoints.kinds import classes_on, is_norm, kinds_on
from midblock.checkpoints.layouts import cut_of, heads_of
from midblock.checkpoints.projections import Projection
from midblock.checkpoints.roles import ATTENTION, IN_ATTENTION, IN_MLP, ROLES, other_modality, part_of

# what stands before block 0 is told by these words in its path, unless it says that it comes behind
_BEFORE = ("embed", "per_layer", "position", "wte", "wpe", "input", "token_type", "segment", "project_in", "altup_proj")
_BEHIND = ("unembed", "embed_out", "output", "final", "head")
_POSITIONS = ("wpe", "position", "embed_pos", "positions_embed")
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings")
# what a module keeps its projections in without being something else: Zaya's queries, keys and values; experts
_SEE_THROUGH = ("qkv_proj", "experts", "shared_experts", "shared_expert")


def of_parameters(model: nn.Module, paths: Mapping[str, str], depth: int, config: Any) -> dict[str, Projection]:
    """Every parameter of a model, by name.

    Args:
        model: a causal language model.
        paths: the dotted path of its `blocks`, `embedding`, `final_norm` and `head`.
        depth: L.
        config: of its decoder.
    """
    modules = dict(model.named_modules())
    seen: _Seen = {}  # blocks are alike: what one told holds for the others
    return {
        name: _completed(_located(name, tuple(value.shape), paths, depth, modules, seen), modules, config)
        for name, value in model.named_parameters()
    }


def located(
    name: str,
    shape: tuple[int, ...],
    paths: Mapping[str, str],
    depth: int,
    modules: Mapping[str, nn.Module] | None = None,
) -> Projection:
    """Say where the parameter `name` sits, also one that no module has.

    Args:
        modules: all modules of the model, whose classes then count beside the names.
    """
    return _located(name, shape, paths, depth, modules or {}, {})


def _located(
    name: str,
    shape: tuple[int, ...],
    paths: Mapping[str, str],
    depth: int,
    modules: Mapping[str, nn.Module],
    seen: _Seen,
) -> Projection:
    inside = _inside(name, paths["blocks"])
    if inside is None:
        return _outside(name, shape, paths, depth, modules)
    block, parts = int(inside[0]), tuple(inside[1:])
    key = parts, classes_on(name, len(parts) - 1, modules)
    if key not in seen:
        seen[key] = _InBlock.of(*key)
    found = seen[key]
    owner = found.owner_of_bias
    return Projection(
        name,
        block,
        found.role,
        found.part,
        shape,
        block=block,
        beside=owner.role if owner else None,
        beside_part=owner.part if owner else None,
    )


@dataclass(frozen=True)
class _InBlock:
    """A parameter's path in its block, and what is known of the modules on it.

    Attributes:
        parts: of its path in the block.
        kinds: of the modules on it, the outermost first; as of `kinds_on`.
        classes: their classes, in small letters.
    """

    parts: tuple[str, ...]
    kinds: tuple[str, ...]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, parts: tuple[str, ...], classes: tuple[str, ...]) -> _InBlock:
        return cls(parts, tuple(kinds_on(parts[:-1], classes)), classes)

    @cached_property
    def owner_of_bias(self) -> _InBlock | None:
        """The weight beside a bias."""
        if self.role != "bias":
            return None
        last = self.parts[-1]
        weight = last.removesuffix("_bias") if last != "bias" else "weight"
        return replace(self, parts=(*self.parts[:-1], weight))

    @cached_property
    def owner(self) -> int:
        """Which part of the path names what holds the parameter: a linear layer, or the parameter itself."""
        at = len(self.parts) - (2 if self.parts[-1] in ("weight", "bias") and len(self.parts) > 1 else 1)
        return at - 1 if self.parts[at] == "linear" and at else at  # a wrapper around one linear layer

    @cached_property
    def kind(self) -> str:
        """The kind that the whole serves: the outermost one; but a router inside is a router."""
        return "router" if "router" in self.kinds else next((kind for kind in self.kinds if kind), "")

    @cached_property
    def own_path(self) -> str:
        return ".".join(part for part in self.parts if part != "weight" and not part.isdigit())

    @cached_property
    def role(self) -> str:
        last, owner = self.parts[-1], self.parts[self.owner]
        innermost = self.classes[self.owner] if self.owner < len(self.classes) else ""
        if is_norm(owner, innermost):
            return "norm"
        if last.endswith("bias"):
            return "bias"
        if self.kind == "router":
            return self._in_router(owner)
        return self._named(owner) or self.own_path

    def _in_router(self, owner: str) -> str:
        """The router of experts by that name; layers of one that has several, and what picks tokens, by their own."""
        known = {*IN_ATTENTION, *IN_MLP}
        within_attention = any("attention" in kind for kind in self.kinds) and "experts" not in self.parts
        return self.own_path if owner in known or within_attention else "router"

    def _named(self, owner: str) -> str | None:
        """The role that the owner's name means where it lies; None where that is not certain."""
        if not self.kind:  # right in the block, or in modules that say nothing
            return IN_MLP.get(owner) or (owner if owner in ATTENTION else None)
        if self.kind != self._close_kind:
            return None
        return ROLES.get(self.kind, {}).get(owner)

    @cached_property
    def _close_kind(self) -> str:
        """The kind of the very module that holds the owner, an unnamed one or a list passed over."""
        at = self.owner - 1
        while at >= 0 and (self.parts[at].isdigit() or self.parts[at] in _SEE_THROUGH):
            at -= 1
        return self.kinds[at] if at >= 0 else ""

    @cached_property
    def part(self) -> str:
        role = self.role
        if role in ("norm", "bias"):
            return role
        if role.endswith("expert_gate") and self.kind == "mlp":
            return "router"  # how much of a shared expert is taken: one output
        return {"linear attention": "attention", "mixer": "other", "": part_of(role)}.get(self.kind, self.kind)


_Seen = dict[tuple[tuple[str, ...], tuple[str, ...]], _InBlock]


def _inside(name: str, blocks: str) -> list[str] | None:
    """The parts of a name after the list of blocks, the block's number first; None outside of it."""
    rest = name.removeprefix(f"{blocks}.")
    parts = rest.split(".")
    return parts if rest != name and parts[0].isdigit() and len(parts) > 1 else None


def _outside(
    name: str, shape: tuple[int, ...], paths: Mapping[str, str], depth: int, modules: Mapping[str, nn.Module]
) -> Projection:
    """A parameter in no block of the decoder."""
    if elsewhere := other_modality(name):
        return Projection(name, depth, elsewhere, "other", shape)
    layer, role = _layer_outside(name, paths, depth), _role_outside(name, paths)
    part = part_of(role)
    if layer == -1 and part == "other" and isinstance(modules.get(name.rpartition(".")[0]), nn.Embedding):
        part = "embedding"
    return Projection(name, layer, role, part, shape)


def _layer_outside(name: str, paths: Mapping[str, str], depth: int) -> int:
    for part, layer in (("final_norm", depth), ("head", depth), ("embedding", -1)):
        if name.startswith(f"{paths.get(part)}."):
            return layer
    path = name.lower()
    if any(word in path for word in _BEHIND):
        return depth
    return -1 if any(word in path for word in _BEFORE) else depth


def _role_outside(name: str, paths: Mapping[str, str]) -> str:
    parts = [part for part in name.split(".") if not part.isdigit()]
    owner = parts[-2] if parts[-1] in ("weight", "bias") and len(parts) > 1 else parts[-1]
    path = name.rpartition(".")[0]
    if path == paths.get("head") or (owner in ("lm_head", "embed_out") and "head" not in paths):
        return "bias" if parts[-1] == "bias" else "head"
    if path == paths.get("embedding") or (owner in _EMBEDDINGS and "embedding" not in paths):
        return "embedding"
    if is_norm(owner, ""):
        return "norm"
    if any(word in owner for word in _POSITIONS) and parts[-1] == "weight":
        return "position_embedding"
    return owner


def _completed(found: Projection, modules: Mapping[str, nn.Module], config: Any) -> Projection:
    """Add what the module that holds a parameter tells: shape and orientation; and what the family tells."""
    path, _, own = found.name.rpartition(".")
    module, shape, transposed = modules[path], found.shape, False
    if own == "weight" and isinstance(module, nn.Linear):
        # a layer says its shape itself: packed 4-bit weights and sharded ones would not
        shape = (module.out_features, module.in_features)
    elif own == "weight" and type(module).__name__ == "Conv1D":
        shape, transposed = (int(module.nf), int(module.nx)), True  # type: ignore[arg-type]
    elif len(shape) == 3 and getattr(module, "is_transposed", False):
        shape, transposed = (shape[0], shape[2], shape[1]), True
    found = replace(found, shape=shape, transposed=transposed, stacked=len(shape) == 3 and _of_experts(path, module))
    holder = modules[path.rpartition(".")[0]] if own == "weight" else module
    found = _unless_fused(found, holder)
    return replace(found, cut=cut_of(found, holder, config), heads=heads_of(found, holder, config))


def _of_experts(path: str, module: nn.Module) -> bool:
    return "expert" in path.rpartition(".")[2].lower() or "expert" in type(module).__name__.lower()


def _unless_fused(found: Projection, holder: nn.Module) -> Projection:
    """Give a projection up that has twice the outputs that its MLP's projection down takes: gate and up in one."""
    if found.role != "up_proj" or found.block is None:
        return found
    down = [
        child
        for name, child in holder.named_children()
        if IN_MLP.get(name) == "down_proj" and isinstance(child, nn.Linear)
    ]
    if not down or down[0].in_features == found.shape[-2]:
        return found
    own = ".".join(part for part in found.name.split(f".{found.block}.", 1)[1].split(".") if part != "weight")
    return replace(found, role=own, part="mlp")
