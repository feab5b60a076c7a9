"""The frozen prefix: blocks below the lowest tuned one run without a graph, or not at all once their output is kept.

Only the blocks' own `forward` is replaced, never a hook around it, so wrappers that hook modules (DDP, FSDP, PEFT,
gradient checkpointing) see what they always see. Cost: of a first visit the blocks' forward pass and a write, of later
ones a read. Described in docs/tuning/prefix.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from midblock.base import MidblockError
from midblock.checkpoints import Anatomy
from midblock.tuning.prefix.store import PrefixStore

NOISE = ("drop", "jitter")  # in the name of a number on a module: applied functionally while it trains
CONFIG_NOISE = ("attention_dropout", "hidden_dropout", "attn_pdrop")  # read from the config in the forward pass
ROPE_OF_THE_BATCH = ("dynamic", "longrope")  # frequencies change once the batch is longer than the original context
OFF = "prefix_cache off"


@dataclass
class _Visit:
    """One batch on its way through the prefix.

    Attributes:
        states: what the prefix puts out for it, once known.
        reached: whether a forward pass came by.
    """

    index: Int[Tensor, "B"]
    attention_mask: Int[Tensor, "B T"]
    states: Float[Tensor, "B T D"] | None = None
    reached: bool = False


class FrozenPrefix:
    """Blocks 0…first-1 of a model of which only blocks from `first` on are tuned.

    Attributes:
        computed: examples whose way through the prefix was computed, counted inside `serving`.
        served: examples that came from the store instead.
    """

    def __init__(self, anatomy: Anatomy, first: int, store: PrefixStore | None) -> None:
        """Choose the prefix.

        Args:
            first: the lowest tuned block; 0 leaves nothing to do, L makes every block part of the prefix.
            store: where the output of block first-1 is kept; None to compute it each time.

        Raises:
            MidblockError: there is no such block.
        """
        if not 0 <= first <= len(anatomy):
            raise MidblockError(f"a frozen prefix of {first} blocks; the model has {len(anatomy)}")
        self.anatomy, self.first, self.store = anatomy, first, store
        self.computed = self.served = 0
        self._visit: _Visit | None = None
        self._outputs: int | None = None  # how many things a block returns; 0 for a bare tensor, None before one ran

    @contextmanager
    def installed(self) -> Iterator[int]:
        """Take over the prefix's blocks, and hand them back as they were; without `serving` they run as always.

        Yields:
            How many blocks were taken over.

        Raises:
            MidblockError: something in the prefix is trainable, or its output may not be kept though there is a store.
        """
        if name := _trainable(self.anatomy, self.first):
            raise MidblockError(f"{name} is trainable, but lies below block {self.first}, in the frozen prefix")
        longest = int(self.store.lengths.max()) if self.store else None
        if self.store and (reason := reason_not_exact(self.anatomy, self.first, longest=longest)):
            raise MidblockError(f"the frozen prefix cannot be cached: {reason}", hint=OFF)
        with ExitStack() as restored:
            for position, block in enumerate(list(self.anatomy.blocks)[: self.first]):
                last = position == self.first - 1
                restored.enter_context(_forward_replaced(block, partial(self._forward, block.forward, last)))
            yield self.first

    @contextmanager
    def serving(self, index: Int[Tensor, "B"], attention_mask: Int[Tensor, "B T"]) -> Iterator[None]:
        """Let every forward pass inside the `with` use the frozen prefix; all of them are of this one batch.

        With a store, the first pass of a batch that is not there writes it and later passes skip the prefix; a batch
        that is there skips it at once. The hidden states that a model then reports below `first` mean nothing, and a
        key-value cache would stay empty there.

        Args:
            index: the examples' positions in the store; best on the CPU, where nothing has to wait for it.
            attention_mask: 1 on real tokens, 0 on the padding to their right; the same.

        Raises:
            MidblockError: the mask does not fit the store's examples, or no forward pass came by.
        """
        if self.first == 0:
            yield
            return
        visit = _Visit(index, attention_mask)
        if self.store:
            self.store.check(index, attention_mask)
            if self.store.has(index):
                visit.states = self.store.read(index, attention_mask.shape[1])
        before, self._visit = self._visit, visit
        try:
            yield
        finally:
            self._visit = before
        if not visit.reached:
            raise MidblockError(f"the forward pass never went through block {self.first - 1} of the frozen prefix")

    def _forward(self, original: Callable[..., Any], last: bool, *args: Any, **kwargs: Any) -> Any:
        """What a block of the prefix does now; `original` is what it did."""
        visit = self._visit
        if visit is None:
            return original(*args, **kwargs)
        with torch.no_grad():
            if visit.states is None:
                output = self._seen(original(*args, **kwargs))
                if last:
                    self._keep(visit, output[0] if self._outputs else output)
                return output
            if self._outputs is None:
                # Only a run tells what form this family's blocks return; after a restart one block runs once for it.
                self._seen(original(*args, **kwargs))
            states = args[0] if args else kwargs["hidden_states"]
            if last:
                states = self._serve(visit, states)
            return (states, *[None] * (self._outputs - 1)) if self._outputs else states

    def _seen(self, output: Any) -> Any:
        self._outputs = len(output) if isinstance(output, tuple) else 0
        return output

    def _keep(self, visit: _Visit, states: Float[Tensor, "*streams"]) -> None:
        visit.reached = True
        if self.store and states.ndim != 3:
            what = f"the frozen prefix hands on states of shape {list(states.shape)}, which cannot be cached"
            raise MidblockError(what, hint="--prefix-cache off")
        self.computed += len(visit.index)
        if self.store:
            self.store.write(visit.index, visit.attention_mask, states)
            visit.states = states

    def _serve(self, visit: _Visit, entering: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        states = visit.states
        if states is None or states.shape != entering.shape:
            raise ValueError("forward passes inside one `serving` are all of the batch it was given")
        if states.is_inference() and not torch.is_inference_mode_enabled():
            states = states.clone()  # kept by a pass in inference mode; autograd refuses to save such a tensor
        visit.states, visit.reached = states.to(entering.device), True
        self.served += len(visit.index)
        return visit.states


def reason_not_exact(anatomy: Anatomy, first: int, *, longest: int | None = None) -> str | None:
    """Say why the output of blocks 0…first-1 may not be kept: it would not be the same on an example's next visit.

    Args:
        longest: tokens of the longest example, if known; position embeddings that change with a batch's length pass
            when no batch gets that long.

    Returns:
        None when it may be kept: equal inputs then give equal outputs, to rounding where batches are put together
        differently.
    """
    if first == 0:
        return None
    config = anatomy.config
    if name := _trainable(anatomy, first):
        return f"{name} is trainable"
    if noise := _noise(anatomy, first):
        return noise
    if getattr(config, "output_router_logits", False):
        return "output_router_logits is on, and blocks that are skipped route nothing"
    if getattr(config, "num_kv_shared_layers", 0):
        return "upper blocks use keys and values of lower ones (num_kv_shared_layers)"
    return _length_dependent_positions(config, longest)


def _below(anatomy: Anatomy, first: int) -> Iterator[tuple[str, nn.Module]]:
    """The modules that the residual stream passes before block `first`, the backbone itself among them."""
    after = {id(module) for block in list(anatomy.blocks)[first:] for module in block.modules()}
    after |= {id(module) for module in anatomy.final_norm.modules()}
    # OPT's way from its blocks to a narrower embedding.
    after |= {id(child) for name, child in anatomy.backbone.named_children() if name == "project_out"}
    return ((name, module) for name, module in anatomy.backbone.named_modules() if id(module) not in after)


def _trainable(anatomy: Anatomy, first: int) -> str | None:
    if first == 0:
        return None
    for name, module in _below(anatomy, first):
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                return f"{name}.{own}".lstrip(".")
    return None


def _noise(anatomy: Anatomy, first: int) -> str | None:
    """Name a dropout or jitter above 0: a Dropout's `p`, a number on a module, or one read from the config."""
    for name, module in _below(anatomy, first):
        numbers = {"dropout": module.p} if isinstance(module, nn.Dropout) else vars(module)
        if found := _positive(numbers.items()):
            return f"{found} in {name or 'the decoder'}"
    if found := _positive((name, getattr(anatomy.config, name, None)) for name in CONFIG_NOISE):
        return f"{found} in the config"
    return None


def _positive(numbers: Iterable[tuple[str, Any]]) -> str | None:
    for name, value in numbers:
        if isinstance(value, int | float) and value is not True and value > 0 and any(word in name for word in NOISE):
            return f"{name} is {value}"
    return None


def _length_dependent_positions(config: Any, longest: int | None) -> str | None:
    rope = getattr(config, "rope_parameters", None) or {}
    for one in (rope, *rope.values()):  # one for all blocks, or one for each kind of block
        if isinstance(one, dict) and (kind := one.get("rope_type")) in ROPE_OF_THE_BATCH:
            limit = one.get("original_max_position_embeddings") or config.max_position_embeddings
            if longest is None or longest > limit:
                return f"rope type {kind} turns each token by the batch's length beyond {limit} tokens"
    return None


@contextmanager
def _forward_replaced(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = vars(block)
    before = own.get("forward")  # only there where something else (accelerate) has replaced it too
    own["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before
